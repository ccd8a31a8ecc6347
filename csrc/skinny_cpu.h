// CPU kernels of matrix products with a small side, the rank of an update: no torch.
//
// The factor on the right is packed first: its columns in panels of kSkinnyPanel, panel after panel, each
// (inner, kSkinnyPanel) row-major and padded with zeros. A contiguous (inner, kSkinnyPanel) matrix is packed
// already.
#pragma once

#include <cstdint>

namespace hybrid_kernels {

constexpr int64_t kSkinnyPanel = 32;

// A matrix of which element (i, j) is at data[i * row + j * column].
template <class T>
struct Strided {
  T* data;
  int64_t row, column;
};

// Rows [begin, end) of the packed form of `right` (inner, columns), counted over all panels.
template <class T>
struct SkinnyPack {
  Strided<const T> right;
  int64_t inner, columns;
  T* packed;
  int64_t begin, end;
};

// Rows [begin, end) of out = left · right, or source + left · right where source.data is not null.
// left (…, inner) has unit stride in one of its dimensions: along the inner one, or, if `left_transposed`,
// along the rows. source and out (…, columns) have a row of unit stride, but for an out without source,
// which may have any strides; source may be out. A result depends neither on begin nor on end, bit for bit.
template <class T>
struct SkinnyProduct {
  Strided<const T> left;
  bool left_transposed;
  const T* packed;
  int64_t inner, columns;
  Strided<const T> source;
  Strided<T> out;
  int64_t begin, end;
};

}  // namespace hybrid_kernels
