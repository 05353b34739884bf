// The compiled design as a shared library; the interface is described in boards/simulated/accelerator.py.
#include <cstdint>
#include <cstring>

#include "slimgate_axis.h"

#ifndef SLIMGATE_IDENTITY
#error "SLIMGATE_IDENTITY must be defined: the digest of the design"
#endif
#ifndef SLIMGATE_BEATS_IN
#error "SLIMGATE_BEATS_IN must be defined: input beats of one sample"
#endif

static hls::stream<beat_t> s_axis("s_axis"), m_axis("m_axis");

extern "C" uint32_t slimgate_abi_version(void) { return 1; }

extern "C" const char *slimgate_identity(void) { return SLIMGATE_IDENTITY; }

extern "C" long slimgate_transfer(const uint8_t *in, long beats_in, uint8_t *out, uint8_t *last, uint8_t *keep,
                                  long capacity_beats) {
    for (long i = 0; i < beats_in; i++) {
        uint64_t word;
        std::memcpy(&word, in + 8 * i, 8);
        beat_t beat;
        beat.data = word;
        beat.keep = -1;
        beat.strb = -1;
        beat.last = i + 1 == beats_in;
        s_axis.write(beat);
    }
    while (s_axis.size() >= SLIMGATE_BEATS_IN)
        slimgate_axis(s_axis, m_axis);
    long made = 0;
    for (; made < capacity_beats && !m_axis.empty(); made++) {
        const beat_t beat = m_axis.read();
        const uint64_t word = beat.data.to_uint64();
        std::memcpy(out + 8 * made, &word, 8);
        last[made] = beat.last.to_uint();
        keep[made] = beat.keep.to_uint();
    }
    return made;
}

#ifdef SLIMGATE_TRACE
// Tokens recorded so far on the stream of that name: *codes points at *count integers on the grid 2**lsb.
extern "C" int slimgate_trace_read(const char *name, const int64_t **codes, long *count, int *lsb) {
    const auto found = slimgate::tracks().find(name);
    if (found == slimgate::tracks().end())
        return 0;
    *codes = found->second.codes.data();
    *count = (long)found->second.codes.size();
    *lsb = found->second.lsb;
    return 1;
}
#endif
