// hls::stream for C simulation: an unbounded ring buffer that refuses to be read when empty.
//
// Vitis HLS' own model warns and returns a default value on an empty read, which turns a broken design into wrong numbers;
// here the process stops and names the stream. With SLIMGATE_TRACE every token written is handed to a recorder, which is
// how the first diverging layer is found on the very C++ that diverged.
#ifndef SLIMGATE_HLS_STREAM_H_
#define SLIMGATE_HLS_STREAM_H_

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#ifdef SLIMGATE_TRACE
#include "slimgate_trace.h"
#endif

namespace hls {

template <typename T> class stream {
  public:
    explicit stream(const char *name = "unnamed") : name_(name), ring_(16), head_(0), count_(0) {}

    void write(const T &token) {
        if (count_ == ring_.size())
            grow();
        ring_[(head_ + count_) & (ring_.size() - 1)] = token;
        ++count_;
#ifdef SLIMGATE_TRACE
        slimgate::record(name_, token);
#endif
    }
    T read() {
        if (count_ == 0) {
            std::fprintf(stderr, "stream %s was read while empty\n", name_);
            std::fflush(stderr);
            std::_Exit(5);
        }
        T token = ring_[head_];
        head_ = (head_ + 1) & (ring_.size() - 1);
        --count_;
        return token;
    }
    void read(T &token) { token = read(); }
    bool empty() const { return count_ == 0; }
    bool full() const { return false; }
    size_t size() const { return count_; }
    T operator>>(T &token) { return token = read(); }
    void operator<<(const T &token) { write(token); }
    bool read_nb(T &token) {
        if (count_ == 0)
            return false;
        token = read();
        return true;
    }
    bool write_nb(const T &token) {
        write(token);
        return true;
    }

  private:
    stream(const stream &);
    stream &operator=(const stream &);

    void grow() {
        std::vector<T> wider(ring_.size() * 2);
        for (size_t i = 0; i < count_; i++)
            wider[i] = ring_[(head_ + i) & (ring_.size() - 1)];
        ring_.swap(wider);
        head_ = 0;
    }

    const char *name_;
    std::vector<T> ring_; // size a power of two
    size_t head_, count_;
};

} // namespace hls

#endif
