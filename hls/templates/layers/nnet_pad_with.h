// Pixels around a picture, all of one value: code = value on the grid of the data.
#ifndef NNET_PAD_WITH_H_
#define NNET_PAD_WITH_H_

#include "hls_stream.h"
#include "nnet_common.h"

namespace nnet {

struct pad_with_config {};

template <class data_T, class res_T, typename CONFIG_T>
void pad_with(hls::stream<data_T> &data, hls::stream<res_T> &res) {
    const int bottom = CONFIG_T::pad_top + CONFIG_T::in_height, right = CONFIG_T::pad_left + CONFIG_T::in_width;
    const ap_int<64> wide = CONFIG_T::value;
    const int width = res_T::value_type::width;

Rows:
    for (int row = 0; row < bottom + CONFIG_T::pad_bottom; row++) {
    Columns:
        for (int column = 0; column < right + CONFIG_T::pad_right; column++) {
            #pragma HLS LOOP_FLATTEN
            #pragma HLS PIPELINE II=1
            const bool inside =
                row >= CONFIG_T::pad_top && row < bottom && column >= CONFIG_T::pad_left && column < right;
            data_T token;
            if (inside)
                token = data.read();
            res_T padded;
        Channels:
            for (unsigned c = 0; c < res_T::size; c++) {
                #pragma HLS UNROLL
                if (inside)
                    padded[c] = token[c];
                else
                    padded[c].range(width - 1, 0) = wide.range(width - 1, 0);
            }
            res.write(padded);
        }
    }
}

} // namespace nnet

#endif
