// Runs the generated network with one thread per dataflow process: main DEPTHS BEATS_IN BEATS_OUT FRAMES
//
// DEPTHS: lines "stream tokens", every stream once. BEATS_*: raw 64-bit beats. Exit 0: all frames went through; 3: all
// processes blocked; 4: a stream has no depth. On stdout "peak STREAM TOKENS" and "wait PROCESS read|write STREAM" lines.
#include <cstdint>
#include <fstream>
#include <iostream>

#include "slimgate_axis.h"

int main(int, char **arguments) {
    std::string name;
    size_t depth;
    for (std::ifstream file(arguments[1]); file >> name >> depth;)
        slimgate::depths[name] = depth;
    slimgate::frames = std::stoul(arguments[4]);
    slimgate::depths["s_axis"] = slimgate::depths["m_axis"] = SIZE_MAX;
    hls::stream<beat_t> s_axis("s_axis"), m_axis("m_axis");
    std::ifstream in(arguments[2], std::ios::binary);
    for (uint64_t word; in.read(reinterpret_cast<char *>(&word), 8);) {
        beat_t beat;
        beat.data = word;
        beat.keep = beat.strb = -1;
        beat.last = in.peek() == EOF;
        s_axis.write(beat);
    }
    slimgate::gate.lock();
    slimgate_axis(s_axis, m_axis); // spawns the processes, then slimgate::run()
    if (!slimgate::unknown.empty()) {
        for (const std::string &stream : slimgate::unknown)
            std::cout << "unknown " << stream << "\n";
        return 4;
    }
    for (const auto &peak : slimgate::peaks)
        std::cout << "peak " << peak.first << " " << peak.second << "\n";
    if (slimgate::dead) {
        for (const slimgate::process &p : slimgate::processes)
            if (p.waiting)
                std::cout << "wait " << p.name << (p.reading ? " read " : " write ") << p.stream << "\n";
        return 3;
    }
    std::ofstream out(arguments[3], std::ios::binary);
    while (m_axis.size()) {
        const uint64_t word = m_axis.read().data.to_uint64();
        out.write(reinterpret_cast<const char *>(&word), 8);
    }
    return 0;
}
