// The kernels of the emulated libraries. Each sum is made in one fixed order, so results have the same bits every time.
#include "shapes.h"

// With beta 0 what was in memory does not count, also where it is no number.
static float blended(float alpha, float value, float beta, float before) {
    return beta == 0 ? alpha * value : alpha * value + beta * before;
}

// A block for each row: an element of the filter, over all places that the filter comes to.
extern "C" __global__ void im2col(const float *image, float *columns, Window window) {
    int row = blockIdx.x, area = window.kernel_height * window.kernel_width;
    int channel = row / area, i = row % area / window.kernel_width, j = row % window.kernel_width;
    float *out = columns + static_cast<long>(row) * window.out_height * window.out_width;
    for (int y = 0; y < window.out_height; y++)
        for (int x = 0; x < window.out_width; x++) {
            int h = y * window.stride_height - window.pad_height + i * window.dilation_height;
            int w = x * window.stride_width - window.pad_width + j * window.dilation_width;
            bool inside = h >= 0 && h < window.height && w >= 0 && w < window.width;
            *out++ = inside ? image[channel * window.channel_step + h * window.row_step + w * window.column_step] : 0;
        }
}

// The other way: a block for each channel, each pixel the sum of all that it went to.
extern "C" __global__ void col2im(const float *columns, float *image, Window window, float alpha, float beta) {
    int channel = blockIdx.x, area = window.kernel_height * window.kernel_width;
    long places = static_cast<long>(window.out_height) * window.out_width;
    for (int h = 0; h < window.height; h++)
        for (int w = 0; w < window.width; w++) {
            float sum = 0;
            for (int i = 0; i < window.kernel_height; i++)
                for (int j = 0; j < window.kernel_width; j++) {
                    int y = h + window.pad_height - i * window.dilation_height;
                    int x = w + window.pad_width - j * window.dilation_width;
                    if (y < 0 || x < 0 || y % window.stride_height || x % window.stride_width)
                        continue;
                    y /= window.stride_height;
                    x /= window.stride_width;
                    if (y < window.out_height && x < window.out_width)
                        sum += columns[(channel * area + i * window.kernel_width + j) * places + y * window.out_width + x];
                }
            float *pixel = image + channel * window.channel_step + h * window.row_step + w * window.column_step;
            *pixel = blended(alpha, sum, beta, *pixel);
        }
}

// A block for each row of c.
extern "C" __global__ void product(const float *a, const float *b, float *c, Product sizes) {
    constexpr int kTile = 64;
    a += blockIdx.x * sizes.a_row;
    c += blockIdx.x * sizes.c_row;
    for (int first = 0; first < sizes.n; first += kTile) {
        float sums[kTile] = {};
        int n = sizes.n - first < kTile ? sizes.n - first : kTile;
        for (int k = 0; k < sizes.k; k++)
            for (int j = 0; j < n; j++)
                sums[j] += a[k * sizes.a_column] * b[k * sizes.b_row + (first + j) * sizes.b_column];
        for (int j = 0; j < n; j++) {
            float *element = c + (first + j) * sizes.c_column;
            *element = blended(sizes.alpha, sums[j], sizes.beta, *element);
        }
    }
}

// A convolution without columns in memory: a block for each filter, which is `filter` and those behind it.
extern "C" __global__ void convolve(const float *image, const float *filters, float *out, Window window, long out_channel,
                                    long out_pixel, float alpha, float beta) {
    const float *filter = filters + static_cast<long>(blockIdx.x) * window.channels * window.kernel_height * window.kernel_width;
    out += blockIdx.x * out_channel;
    for (int y = 0; y < window.out_height; y++)
        for (int x = 0; x < window.out_width; x++, out += out_pixel) {
            float sum = 0;
            const float *weight = filter;
            for (int channel = 0; channel < window.channels; channel++)
                for (int i = 0; i < window.kernel_height; i++)
                    for (int j = 0; j < window.kernel_width; j++, weight++) {
                        int h = y * window.stride_height - window.pad_height + i * window.dilation_height;
                        int w = x * window.stride_width - window.pad_width + j * window.dilation_width;
                        if (h >= 0 && h < window.height && w >= 0 && w < window.width)
                            sum += *weight * image[channel * window.channel_step + h * window.row_step + w * window.column_step];
                    }
            *out = blended(alpha, sum, beta, *out);
        }
}

// Its gradient of an image: a block for each channel of a group, of which `filters` are.
extern "C" __global__ void convolve_back(const float *gradient, const float *filters, float *image, Window window,
                                         int n_filters, long out_channel, long out_pixel, float alpha, float beta) {
    long area = static_cast<long>(window.kernel_height) * window.kernel_width;
    for (int h = 0; h < window.height; h++)
        for (int w = 0; w < window.width; w++) {
            float sum = 0;
            for (int filter = 0; filter < n_filters; filter++)
                for (int i = 0; i < window.kernel_height; i++)
                    for (int j = 0; j < window.kernel_width; j++) {
                        int y = h + window.pad_height - i * window.dilation_height;
                        int x = w + window.pad_width - j * window.dilation_width;
                        if (y < 0 || x < 0 || y % window.stride_height || x % window.stride_width)
                            continue;
                        y /= window.stride_height;
                        x /= window.stride_width;
                        if (y < window.out_height && x < window.out_width)
                            sum += filters[(filter * window.channels + blockIdx.x) * area + i * window.kernel_width + j] *
                                   gradient[filter * out_channel + (static_cast<long>(y) * window.out_width + x) * out_pixel];
                    }
            float *pixel = image + blockIdx.x * window.channel_step + h * window.row_step + w * window.column_step;
            *pixel = blended(alpha, sum, beta, *pixel);
        }
}

// Its gradient of filters by one image: a block for each filter of a group, of which the channels of `image` are.
extern "C" __global__ void convolve_filters(const float *image, const float *gradient, float *filters, Window window,
                                            long out_channel, long out_pixel, float alpha, float beta) {
    gradient += blockIdx.x * out_channel;
    filters += static_cast<long>(blockIdx.x) * window.channels * window.kernel_height * window.kernel_width;
    for (int channel = 0; channel < window.channels; channel++)
        for (int i = 0; i < window.kernel_height; i++)
            for (int j = 0; j < window.kernel_width; j++, filters++) {
                float sum = 0;
                for (int y = 0; y < window.out_height; y++)
                    for (int x = 0; x < window.out_width; x++) {
                        int h = y * window.stride_height - window.pad_height + i * window.dilation_height;
                        int w = x * window.stride_width - window.pad_width + j * window.dilation_width;
                        if (h >= 0 && h < window.height && w >= 0 && w < window.width)
                            sum += gradient[(static_cast<long>(y) * window.out_width + x) * out_pixel] *
                                   image[channel * window.channel_step + h * window.row_step + w * window.column_step];
                    }
                *filters = blended(alpha, sum, beta, *filters);
            }
}

#define FOR_EACH_PAIR                                                                                                            \
    long first = blockIdx.x, second = blockIdx.y;                                                                                \
    from += first * pairs.from[0] + second * pairs.from[1];                                                                      \
    to += first * pairs.to[0] + second * pairs.to[1];                                                                            \
    for (int i = 0; i < pairs.extents[2]; i++)                                                                                   \
        for (int j = 0; j < pairs.extents[3]; j++)
#define FROM from[i * pairs.from[2] + j * pairs.from[3]]
#define TO to[i * pairs.to[2] + j * pairs.to[3]]

extern "C" __global__ void add(const float *from, float *to, Pairs pairs) {
    FOR_EACH_PAIR TO = blended(pairs.alpha, FROM, pairs.beta, TO);
}

// What is no number passes through if `numbers` is 0.
extern "C" __global__ void relu(const float *from, float *to, Pairs pairs, int numbers) {
    FOR_EACH_PAIR {
        float value = FROM;
        TO = blended(pairs.alpha, value > 0 || (value != value && !numbers) ? value : 0, pairs.beta, TO);
    }
}

// `results` lie as `to` does.
extern "C" __global__ void relu_gradient(const float *from, const float *results, float *to, Pairs pairs) {
    results += static_cast<long>(blockIdx.x) * pairs.to[0] + static_cast<long>(blockIdx.y) * pairs.to[1];
    FOR_EACH_PAIR TO = blended(pairs.alpha, results[i * pairs.to[2] + j * pairs.to[3]] > 0 ? FROM : 0, pairs.beta, TO);
}

// A block for each channel: the sum over all others of the four axes.
extern "C" __global__ void channel_sums(const float *from, float *sums, Pairs pairs) {
    float sum = 0;
    for (int n = 0; n < pairs.extents[0]; n++)
        for (int i = 0; i < pairs.extents[2]; i++)
            for (int j = 0; j < pairs.extents[3]; j++)
                sum += from[n * pairs.from[0] + blockIdx.x * pairs.from[1] + i * pairs.from[2] + j * pairs.from[3]];
    float *result = sums + blockIdx.x * pairs.to[1];
    *result = blended(pairs.alpha, sum, pairs.beta, *result);
}

// A block for each 1024 numbers: Philox 4x32-10 of a counter, as uniform numbers in (0, 1].
extern "C" __global__ void uniform(float *numbers, long count, unsigned long long seed, unsigned long long offset) {
    constexpr long kEach = 1024;
    long end = (blockIdx.x + 1) * kEach < count ? (blockIdx.x + 1) * kEach : count;
    for (long i = blockIdx.x * kEach; i < end; i++) {
        unsigned long long place = offset + i, block = place / 4;
        unsigned key[2] = {static_cast<unsigned>(seed), static_cast<unsigned>(seed >> 32)};
        unsigned x[4] = {static_cast<unsigned>(block), static_cast<unsigned>(block >> 32), 0, 0};
        for (int round = 0; round < 10; round++) {
            unsigned long long first = 0xD2511F53ull * x[0], second = 0xCD9E8D57ull * x[2];
            unsigned mixed[4] = {static_cast<unsigned>(second >> 32) ^ x[1] ^ key[0], static_cast<unsigned>(second),
                                 static_cast<unsigned>(first >> 32) ^ x[3] ^ key[1], static_cast<unsigned>(first)};
            for (int j = 0; j < 4; j++)
                x[j] = mixed[j];
            key[0] += 0x9E3779B9u;
            key[1] += 0xBB67AE85u;
        }
        numbers[i] = (static_cast<float>(x[place % 4] >> 8) + 1) / 16777216;
    }
}
