// The mask of seeded dropout: which elements of a (rows, features) matrix are kept.
//
//   kept[i, j] = bits[i, j] >= threshold, bits[i, j] the 16-bit half j mod 2 of word (j div 2) mod 4 of
//   Philox4x32-7(counter = (i mod 2^32, i div 2^32, j div 8, 0), key = seed)
//
// Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011. Written out because the integer products of
// plain tensor operations cost some thirty times as much as a whole dropout.
#pragma once

#include <algorithm>
#include <cstdint>

namespace hybrid_kernels {

// Octets computed side by side, for the compiler to vectorise.
constexpr int kDropoutLanes = 16;

inline void philox_lanes(uint32_t (&c)[4][kDropoutLanes], uint64_t seed) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 7; ++round) {
    for (int lane = 0; lane < kDropoutLanes; ++lane) {
      const uint64_t first = static_cast<uint64_t>(c[0][lane]) * 0xD2511F53u;
      const uint64_t second = static_cast<uint64_t>(c[2][lane]) * 0xCD9E8D57u;
      c[0][lane] = static_cast<uint32_t>(second >> 32) ^ c[1][lane] ^ k0;
      c[1][lane] = static_cast<uint32_t>(second);
      c[2][lane] = static_cast<uint32_t>(first >> 32) ^ c[3][lane] ^ k1;
      c[3][lane] = static_cast<uint32_t>(first);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// Rows [begin, end) of kept, row-major and without gaps.
inline void dropout_kept(bool* kept, int64_t features, uint32_t threshold, uint64_t seed, int64_t begin, int64_t end) {
  constexpr int64_t kBlock = 8 * kDropoutLanes;
  for (int64_t row = begin; row < end; ++row) {
    bool* out = kept + row * features;
    for (int64_t start = 0; start < features; start += kBlock) {
      uint32_t c[4][kDropoutLanes];
      for (int lane = 0; lane < kDropoutLanes; ++lane) {
        c[0][lane] = static_cast<uint32_t>(row);
        c[1][lane] = static_cast<uint32_t>(static_cast<uint64_t>(row) >> 32);
        c[2][lane] = static_cast<uint32_t>(start / 8 + lane);
        c[3][lane] = 0;
      }
      philox_lanes(c, seed);
      bool block[kBlock];
      for (int lane = 0; lane < kDropoutLanes; ++lane)
        for (int word = 0; word < 4; ++word) {
          block[8 * lane + 2 * word] = (c[word][lane] & 0xFFFFu) >= threshold;
          block[8 * lane + 2 * word + 1] = (c[word][lane] >> 16) >= threshold;
        }
      std::copy(block, block + std::min(kBlock, features - start), out + start);
    }
  }
}

}  // namespace hybrid_kernels
