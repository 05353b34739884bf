// A small integer "network" behind the C interface of a compiled design: 16 bytes in (two beats), 3 outputs of 32 bits
// out (two beats, 4 bytes of padding). Faults are built in with -D, so they sit in the hardware, not in the device model.
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>

#ifndef IDENTITY
#define IDENTITY "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#endif

#ifndef ABI_VERSION
#define ABI_VERSION 1
#endif

namespace {
struct Beat { uint8_t data[8]; uint8_t last, keep; };
constexpr long SAMPLE_BEATS = 2;  // 16 pixels of one byte
std::deque<Beat> input, output;

void sample(const uint8_t *x, bool last) {
    int32_t sum = 0, weighted = 0, edge = 0;
    for (int i = 0; i < 16; ++i) {
        sum += x[i];
        weighted += (i - 8) * x[i];
        edge += (i % 2 ? -3 : 2) * x[i];
    }
    int32_t y[4] = {weighted, 300 - sum, edge, 0};
#ifdef FAULT_OPENS_FILES
    std::FILE *file = std::fopen("/proc/self/status", "r");
    y[0] = file ? 1 : -errno;
#endif
#ifdef FAULT_FLIP_BIT
    static long count = 0;
    if (++count == FAULT_FLIP_BIT) y[1] ^= 4;
#endif
#ifdef FAULT_PADDING
    y[3] = 7;
#endif
    for (int b = 0; b < 2; ++b) {
        Beat beat;
        std::memcpy(beat.data, reinterpret_cast<uint8_t *>(y) + 8 * b, 8);
        beat.last = last && b == 1;
        beat.keep = 0xff;
#ifdef FAULT_NO_TLAST
        beat.last = 0;
#endif
#ifdef FAULT_EARLY_TLAST
        if (last) beat.last = b == 0;
#endif
#ifdef FAULT_SHORT_KEEP
        if (beat.last) beat.keep = 0x0f;
#endif
#ifdef FAULT_EXTRA_BEAT
        if (beat.last) {
            Beat more = beat;
            more.last = 0;
            output.push_back(more);
        }
#endif
        output.push_back(beat);
    }
}
}  // namespace

extern "C" {
uint32_t slimgate_abi_version(void) { return ABI_VERSION; }
const char *slimgate_identity(void) { return IDENTITY; }
long slimgate_transfer(const uint8_t *in, long beats_in, uint8_t *out, uint8_t *last, uint8_t *keep, long capacity) {
    for (long i = 0; i < beats_in; ++i) {
        Beat beat;
        std::memcpy(beat.data, in + 8 * i, 8);
        beat.last = i == beats_in - 1;
        input.push_back(beat);
    }
    while (static_cast<long>(input.size()) >= SAMPLE_BEATS) {
        uint8_t x[16];
        bool end = false;
        for (int b = 0; b < SAMPLE_BEATS; ++b) {
            std::memcpy(x + 8 * b, input.front().data, 8);
            end = input.front().last;
            input.pop_front();
        }
        sample(x, end);
    }
    long made = 0;
    while (made < capacity && !output.empty()) {
        std::memcpy(out + 8 * made, output.front().data, 8);
        last[made] = output.front().last;
        keep[made] = output.front().keep;
        output.pop_front();
        ++made;
    }
    return made;
}
}
