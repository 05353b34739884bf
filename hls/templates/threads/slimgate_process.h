// Dataflow processes as threads, FIFOs that block, and a deadlock that is detected exactly.
//
// One mutex guards everything. A process that must wait is counted as blocked before it sleeps, and taken off the count by
// the process that frees it, not by itself when it wakes: at every moment `blocked` is the number of processes that no
// other process has freed. When it reaches the number of processes that have not finished, none can ever run again.
// No clock is read anywhere.
#ifndef SLIMGATE_PROCESS_H_
#define SLIMGATE_PROCESS_H_

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace slimgate {

struct deadlock {}; // thrown through the generated code of every process that is stuck

struct process {
    explicit process(const char *process_name) : name(process_name) {}
    std::string name, stream; // `stream`: what it waits for
    bool waiting = false, reading = false, finished = false;
    std::condition_variable wake;
};

class channel {
  public:
    explicit channel(const char *name);
    const std::string name;
    size_t depth, count = 0, peak = 0;
    process *reader = nullptr, *writer = nullptr; // those asleep here
};

inline std::mutex gate;
inline std::deque<process> processes; // a deque: addresses stay
inline std::vector<std::thread> threads;
inline std::map<std::string, size_t> depths; // by stream name, in tokens
inline std::map<std::string, size_t> peaks;
inline size_t alive = 0, blocked = 0, frames = 1;
inline bool dead = false;
inline std::vector<std::string> unknown; // streams without a depth
inline thread_local process *self = nullptr;

inline channel::channel(const char *stream_name) : name(stream_name) {
    const auto found = depths.find(name);
    depth = found == depths.end() ? 0 : found->second;
    if (found == depths.end())
        unknown.push_back(name);
}

inline void check() { // the caller holds the gate
    if (alive == 0 || blocked < alive)
        return;
    dead = true;
    for (process &p : processes)
        p.wake.notify_one();
}

inline void sleep(std::unique_lock<std::mutex> &held, channel &at, process *&place, bool reading) {
    if (self == nullptr)
        throw deadlock(); // the driver itself never waits
    place = self;
    self->stream = at.name;
    self->reading = reading;
    self->waiting = true;
    ++blocked;
    check();
    self->wake.wait(held, [] { return !self->waiting || dead; });
    if (self->waiting)
        throw deadlock();
}

inline void rouse(process *&sleeper) {
    if (sleeper == nullptr)
        return;
    sleeper->waiting = false;
    --blocked;
    sleeper->wake.notify_one();
    sleeper = nullptr;
}

inline std::unique_lock<std::mutex> to_read(channel &at) {
    std::unique_lock<std::mutex> held(gate);
    while (at.count == 0)
        sleep(held, at, at.reader, true);
    --at.count;
    return held;
}

inline std::unique_lock<std::mutex> to_write(channel &at) {
    std::unique_lock<std::mutex> held(gate);
    while (at.count >= at.depth)
        sleep(held, at, at.writer, false);
    if (++at.count > at.peak)
        at.peak = peaks[at.name] = at.count;
    return held;
}

// The hardware restarts a process for each frame.
inline void spawn(const char *name, std::function<void()> frame) {
    processes.emplace_back(name);
    process *mine = &processes.back();
    ++alive;
    threads.emplace_back([mine, frame] {
        self = mine;
        try {
            gate.lock(); // held by the driver until every process exists
            gate.unlock();
            for (size_t i = 0; i < frames; i++)
                frame();
        } catch (const deadlock &) {
            return;
        }
        std::unique_lock<std::mutex> held(gate);
        mine->finished = true;
        --alive;
        check();
    });
}

// The driver holds the gate while it sets up, and lets go here.
inline void run() {
    dead = !unknown.empty();
    gate.unlock();
    for (std::thread &t : threads)
        t.join();
    threads.clear();
}

} // namespace slimgate

#endif
