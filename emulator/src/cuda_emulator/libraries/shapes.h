/* What the libraries tell their kernels beside pointers; read by C and by C++. */
#ifndef EMULATED_SHAPES_H
#define EMULATED_SHAPES_H

/* How a filter goes over an image of one group's channels. Steps are in elements. */
typedef struct Window {
    int channels, height, width;
    int kernel_height, kernel_width;
    int out_height, out_width;
    int pad_height, pad_width, stride_height, stride_width, dilation_height, dilation_width;
    long channel_step, row_step, column_step;
} Window;

/* c = alpha * a b + beta * c, of m rows and n columns; each matrix has a step between its rows and one between columns. */
typedef struct Product {
    int m, n, k;
    long a_row, a_column, b_row, b_column, c_row, c_column;
    float alpha, beta;
} Product;

/* Two arrays of four axes, element by element; a step of 0 repeats. */
typedef struct Pairs {
    int extents[4];
    long from[4], to[4];
    float alpha, beta;
} Pairs;

#endif
