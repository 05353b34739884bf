// hls::stream with the semantics of a hardware FIFO: `depth` tokens, reading blocks when empty, writing when full.
#ifndef SLIMGATE_HLS_STREAM_H_
#define SLIMGATE_HLS_STREAM_H_

#include <deque>

#include "slimgate_process.h"

namespace hls {

template <typename T> class stream {
  public:
    explicit stream(const char *name = "unnamed") : channel_(name) {}

    void write(const T &token) {
        const auto held = slimgate::to_write(channel_);
        tokens_.push_back(token);
        slimgate::rouse(channel_.reader);
    }
    T read() {
        const auto held = slimgate::to_read(channel_);
        T token = tokens_.front();
        tokens_.pop_front();
        slimgate::rouse(channel_.writer);
        return token;
    }
    void read(T &token) { token = read(); }
    size_t size() const { return channel_.count; }

  private:
    stream(const stream &);
    stream &operator=(const stream &);

    slimgate::channel channel_;
    std::deque<T> tokens_;
};

} // namespace hls

#endif
