// Every pixel repeated: factor_width times along its row, and the row factor_height times. One pixel each cycle.
#ifndef NNET_UPSAMPLE_H_
#define NNET_UPSAMPLE_H_

#include "hls_stream.h"
#include "nnet_common.h"

namespace nnet {

struct upsample_config {};

template <class data_T, class res_T, typename CONFIG_T>
void upsample(hls::stream<data_T> &data, hls::stream<res_T> &res) {
    res_T line[CONFIG_T::width];

Rows:
    for (int row = 0; row < CONFIG_T::height; row++) {
    Down:
        for (int again = 0; again < CONFIG_T::factor_height; again++) {
        Columns:
            for (int column = 0; column < CONFIG_T::width; column++) {
            Across:
                for (int copy = 0; copy < CONFIG_T::factor_width; copy++) {
                    #pragma HLS LOOP_FLATTEN
                    #pragma HLS PIPELINE II=1
                    res_T pixel;
                    if (again == 0 && copy == 0) {
                        const data_T token = data.read();
                    Channels:
                        for (unsigned c = 0; c < res_T::size; c++) {
                            #pragma HLS UNROLL
                            pixel[c] = token[c];
                        }
                        line[column] = pixel;
                    } else {
                        pixel = line[column];
                    }
                    res.write(pixel);
                }
            }
        }
    }
}

} // namespace nnet

#endif
