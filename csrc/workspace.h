// Scratch memory aligned for the widest registers.
#pragma once

#include <cstdint>
#include <new>

namespace hybrid_kernels {
namespace {  // internal linkage, see block_algebra.h

// `count` uninitialised numbers: on the stack if they are at most kOnStack.
template <class R, int64_t kOnStack = 1>
class Workspace {
 public:
  explicit Workspace(int64_t count)
      : data_(count <= kOnStack ? stack_ : static_cast<R*>(::operator new(count * sizeof(R), kAlignment))) {}
  ~Workspace() {
    if (data_ != stack_) ::operator delete(data_, kAlignment);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  R* at(int64_t offset) const { return data_ + offset; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  alignas(64) R stack_[kOnStack];
  R* data_;
};

}  // namespace
}  // namespace hybrid_kernels
