// Records every token of every stream as integer codes, by stream name, in the order written.
#ifndef SLIMGATE_TRACE_H_
#define SLIMGATE_TRACE_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "ap_fixed.h"
#include "ap_int.h"

namespace nnet {
template <typename T, unsigned N> struct array;
}

namespace slimgate {

struct track {
    std::vector<int64_t> codes;
    int lsb = 0; // value = code * 2**lsb
};

inline std::map<std::string, track> &tracks() {
    static std::map<std::string, track> all;
    return all;
}

template <int W, int I, ap_q_mode Q, ap_o_mode O, int N> int64_t code_of(const ap_fixed<W, I, Q, O, N> &v, int &lsb) {
    lsb = I - W;
    return ap_int<W>(v.range(W - 1, 0)).to_int64();
}
template <int W, int I, ap_q_mode Q, ap_o_mode O, int N> int64_t code_of(const ap_ufixed<W, I, Q, O, N> &v, int &lsb) {
    lsb = I - W;
    return ap_uint<W>(v.range(W - 1, 0)).to_int64();
}
template <int W> int64_t code_of(const ap_int<W> &v, int &lsb) {
    lsb = 0;
    return v.to_int64();
}
template <int W> int64_t code_of(const ap_uint<W> &v, int &lsb) {
    lsb = 0;
    return v.to_int64();
}

template <typename T> void record(const char *, const T &) {} // beats and flags are not layers
template <typename T, unsigned N> void record(const char *name, const nnet::array<T, N> &token) {
    track &t = tracks()[name];
    for (unsigned i = 0; i < N; i++)
        t.codes.push_back(code_of(token.data[i], t.lsb));
}

} // namespace slimgate

#endif
