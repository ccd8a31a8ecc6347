// Runs the threads of a kernel one at a time, in an order that the test chooses, and finds what a GPU would pass over.
//
// Every thread of a block is a fiber, run until it waits or ends. The next one is always the first in the order that
// need not wait, so a thread, and its warp, get as far ahead of the later ones as the barriers allow: a result that
// lacks a barrier differs between the orders. Blocks run one after another. The first fault ends the launch.
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cuda_runtime.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace hybrid_kernels {
constexpr int64_t kLargestSharedBytes = 256 * 1024, kGuardBytes = 16 * 1024;
alignas(128) unsigned char shared_memory[kLargestSharedBytes + kGuardBytes];
}  // namespace hybrid_kernels

namespace shim {
namespace {

using hybrid_kernels::kGuardBytes;
using hybrid_kernels::shared_memory;

constexpr int kWarp = 32, kMaxThreads = 1024;
constexpr int64_t kMaxBlocks = 0x7fffffff, kDefaultSharedBytes = 48 * 1024;
constexpr size_t kStackBytes = 256 * 1024, kPageBytes = 4096;
constexpr unsigned char kFill = 0xff;  // a NaN of any type

struct Settings {
  int order;  // 0 ascending, 1 descending, 2 random
  int64_t seed;
  int64_t shared_bytes;     // that a block can have on this device
  int64_t failing_launch;   // the launch, from 0, that returns an error, or −1
  int launch_error;         // that error
  int pending_error;        // what cudaGetLastError finds after a launch
  int device_error;         // what asking the device returns
  cudaStream_t stream;      // where everything has to go
};
Settings settings;
int64_t launches;
std::string fault;
std::map<const void*, int64_t> shared_limit;
std::mt19937_64 generator;

enum class State { kReady, kInBlockBarrier, kInWarp, kEnded };

struct Fiber {
  ucontext_t start;
  jmp_buf at;
  char* stack = nullptr;
  bool started = false;
  State state;
  // what it waits for
  const char* what;
  Location where;
  unsigned mask;
  uint64_t value;
  int source;
};
Fiber fibers[kMaxThreads];
int threads, current = -1, waiting_in_block;
jmp_buf scheduler_at;
std::function<void()> run_thread;

// Threads by their place in the order; the lanes that can run, by place.
int warp_at[kMaxThreads / kWarp], lane_at[kMaxThreads / kWarp][kWarp], place_of[kMaxThreads / kWarp][kWarp];
unsigned ready[kMaxThreads / kWarp];
unsigned waiting_in_warp[kMaxThreads / kWarp];  // by lane

std::string describe(int thread) {
  const Fiber& f = fibers[thread];
  std::string text = "thread " + std::to_string(thread) + " of block " + std::to_string(blockIdx.x);
  if (f.state == State::kEnded) return text + " has ended";
  std::string file = f.where.file_name();
  file = file.substr(file.rfind('/') + 1);
  return text + " waits in " + f.what + " at " + file + ":" + std::to_string(f.where.line());
}

[[noreturn]] __attribute__((noinline)) void leave() {
  _longjmp(scheduler_at, 1);
}

// Records the first fault. A thread that is running does not go on.
void fail(const std::string& message) {
  if (fault.empty()) fault = message;
  if (current >= 0) leave();
}

__attribute__((noinline)) void pause() {
  if (_setjmp(fibers[current].at) == 0) leave();
}

void fiber_main() {
  for (;;) {
    run_thread();
    fibers[current].state = State::kEnded;
    pause();
  }
}

void prepare(Fiber& f) {
  if (f.stack == nullptr) {
    f.stack = static_cast<char*>(
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (f.stack == MAP_FAILED || mprotect(f.stack, kPageBytes, PROT_NONE) != 0) {
      perror("stack of a thread");
      abort();
    }
  }
  getcontext(&f.start);
  f.start.uc_stack.ss_sp = f.stack;
  f.start.uc_stack.ss_size = kStackBytes;
  f.start.uc_link = nullptr;
  makecontext(&f.start, fiber_main, 0);
}

__attribute__((noinline)) void resume(int thread) {
  Fiber& f = fibers[thread];
  current = thread;
  threadIdx = {static_cast<unsigned>(thread), 0, 0};
  if (_setjmp(scheduler_at) == 0) {
    if (f.started) _longjmp(f.at, 1);
    f.started = true;
    prepare(f);
    setcontext(&f.start);
  }
  current = -1;
}

void set_ready(int thread) {
  fibers[thread].state = State::kReady;
  ready[thread / kWarp] |= 1u << place_of[thread / kWarp][thread % kWarp];
}

template <class Item>
void arrange(Item* items, int count) {
  std::iota(items, items + count, 0);
  if (settings.order == 1) std::reverse(items, items + count);
  if (settings.order == 2) std::shuffle(items, items + count, generator);
}

// Makes all threads ready, in a new order.
void start_round() {
  const int warps = (threads + kWarp - 1) / kWarp;
  arrange(warp_at, warps);
  for (int w = 0; w < warps; ++w) {
    arrange(lane_at[w], kWarp);
    for (int place = 0; place < kWarp; ++place) place_of[w][lane_at[w][place]] = place;
    ready[w] = waiting_in_warp[w] = 0;
  }
  for (int t = 0; t < threads; ++t) set_ready(t);
  waiting_in_block = 0;
}

int next_ready() {
  for (int w = 0; w < (threads + kWarp - 1) / kWarp; ++w) {
    const int warp = warp_at[w];
    if (ready[warp] == 0) continue;
    const int place = __builtin_ctz(ready[warp]);
    ready[warp] &= ready[warp] - 1;
    return warp * kWarp + lane_at[warp][place];
  }
  return -1;
}

void report_deadlock() {
  std::string text = "the threads wait for each other: ";
  std::vector<std::string> seen;
  for (int t = 0; t < threads; ++t) {
    const Fiber& f = fibers[t];
    const std::string kind =
        f.state == State::kEnded ? "ended" : f.what + std::to_string(f.where.line()) + std::to_string(f.mask);
    if (std::find(seen.begin(), seen.end(), kind) != seen.end()) continue;
    text += (seen.empty() ? "" : ", ") + describe(t);
    seen.push_back(kind);
  }
  fail(text);
}

void run_block(int64_t shared_bytes) {
  std::memset(shared_memory, kFill, shared_bytes + kGuardBytes);
  start_round();
  int thread;
  while (fault.empty() && (thread = next_ready()) >= 0) resume(thread);
  if (!fault.empty()) return;
  if (std::any_of(fibers, fibers + threads, [](const Fiber& f) { return f.state != State::kEnded; }))
    return report_deadlock();
  const unsigned char* guard = shared_memory + shared_bytes;
  const auto* written = std::find_if(guard, guard + kGuardBytes, [](unsigned char x) { return x != kFill; });
  if (written != guard + kGuardBytes)
    fail("block " + std::to_string(blockIdx.x) + " wrote to byte " + std::to_string(written - shared_memory) +
         " of " + std::to_string(shared_bytes) + " bytes of shared memory");
}

bool same_wait(const Fiber& x, const Fiber& y) {
  return x.mask == y.mask && x.where.line() == y.where.line() &&
         std::strcmp(x.where.file_name(), y.where.file_name()) == 0;
}

void check_stream(cudaStream_t stream) {
  if (stream != settings.stream) fail("work was put on another stream than the one given");
}

}  // namespace

int lane() { return current % kWarp; }

bool wait_for_block(const char* what, bool value, Location where) {
  Fiber& f = fibers[current];
  f.what = what, f.where = where, f.mask = 0, f.value = value;
  f.state = State::kInBlockBarrier;
  if (++waiting_in_block == threads) {
    bool any = false;
    for (int t = 0; t < threads; ++t) {
      if (!same_wait(f, fibers[t]))
        fail("threads meet at different barriers: " + describe(current) + ", " + describe(t));
      any |= fibers[t].value != 0;
    }
    for (int t = 0; t < threads; ++t) fibers[t].value = any;
    start_round();
  }
  pause();
  return fibers[current].value != 0;
}

uint64_t wait_for_warp(const char* what, unsigned mask, uint64_t value, int source, Location where) {
  const int first = current / kWarp * kWarp, lanes = std::min(kWarp, threads - first), self = current - first;
  Fiber* warp = fibers + first;
  Fiber& f = fibers[current];
  f.what = what, f.where = where, f.mask = mask, f.value = value, f.source = source;
  f.state = State::kInWarp;
  if (!(mask >> self & 1)) fail("a lane that is not in the mask: " + describe(current));
  if (lanes < kWarp && mask >> lanes != 0) fail("the mask names lanes that the block lacks: " + describe(current));
  unsigned& waiting = waiting_in_warp[first / kWarp];
  waiting |= 1u << self;
  bool complete = (waiting & mask) == mask;
  for (int l = 0; complete && l < lanes; ++l) {
    if (!(mask >> l & 1) || same_wait(f, warp[l])) continue;
    if (warp[l].mask >> self & 1)
      fail("lanes meet in different places: " + describe(current) + ", " + describe(first + l));
    complete = false;
  }
  if (complete) {
    waiting &= ~mask;
    uint64_t given[kWarp] = {};
    bool any = false;
    for (int l = 0; l < lanes; ++l) {
      given[l] = warp[l].value;
      any |= (mask >> l & 1) && given[l] != 0;
    }
    for (int l = 0; l < lanes; ++l) {
      if (!(mask >> l & 1)) continue;
      if (warp[l].source >= 0 && !(mask >> warp[l].source & 1))
        fail("reads lane " + std::to_string(warp[l].source) + ", which takes no part: " + describe(first + l));
      warp[l].value = warp[l].source >= 0 ? given[warp[l].source] : any;
      set_ready(first + l);
    }
  }
  pause();
  return fibers[current].value;
}

cudaError_t set_shared_limit(const void* kernel, int bytes) {
  if (bytes > settings.shared_bytes) return cudaErrorInvalidValue;
  shared_limit[kernel] = bytes;
  return cudaSuccess;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, std::function<void()> thread) {
  if (launches++ == settings.failing_launch) return static_cast<cudaError_t>(settings.launch_error);
  const int64_t blocks = config.gridDim.x;
  if (blocks < 1 || blocks > kMaxBlocks || config.blockDim.x < 1 || config.blockDim.x > kMaxThreads)
    return cudaErrorInvalidConfiguration;
  const auto raised = shared_limit.find(kernel);
  const int64_t limit = raised == shared_limit.end() ? kDefaultSharedBytes : raised->second;
  const auto shared_bytes = static_cast<int64_t>(config.dynamicSmemBytes);
  if (shared_bytes > limit) return cudaErrorInvalidValue;
  check_stream(config.stream);
  gridDim = config.gridDim, blockDim = config.blockDim;
  threads = static_cast<int>(config.blockDim.x);
  run_thread = std::move(thread);
  std::vector<unsigned> order(blocks);
  arrange(order.data(), static_cast<int>(blocks));
  for (unsigned block : order) {
    blockIdx = {block, 0, 0};
    if (fault.empty()) run_block(shared_bytes);
  }
  if (fault.empty()) return cudaSuccess;
  for (Fiber& f : fibers) f.started = false;  // wherever they are
  return cudaErrorLaunchFailure;
}

}  // namespace shim

cudaError_t cudaGetLastError() { return static_cast<cudaError_t>(shim::settings.pending_error); }

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return static_cast<cudaError_t>(shim::settings.device_error);
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = static_cast<int>(shim::settings.shared_bytes);
  return static_cast<cudaError_t>(shim::settings.device_error);
}

cudaError_t cudaMemsetAsync(void* pointer, int value, std::size_t bytes, cudaStream_t stream) {
  shim::check_stream(stream);
  std::memset(pointer, value, bytes);
  return cudaSuccess;
}

extern "C" {

// Before every call of a launcher.
void shim_configure(int order, int64_t seed, int64_t shared_bytes, int64_t failing_launch, int launch_error,
                    int pending_error, int device_error, void* stream) {
  shim::settings = {order,         seed,         shared_bytes, failing_launch, launch_error,
                    pending_error, device_error, static_cast<cudaStream_t>(stream)};
  shim::generator.seed(static_cast<uint64_t>(seed));
  shim::launches = 0;
  shim::fault.clear();
  shim::shared_limit.clear();
}

// What went wrong, or "".
const char* shim_fault() { return shim::fault.c_str(); }
int64_t shim_launches() { return shim::launches; }

// The sanitizer's reports, of which GCC's and Clang's runtime would only print.
struct SanitizerLocation {
  const char* file;
  uint32_t line, column;
};
void __ubsan_handle_type_mismatch_v1(SanitizerLocation* where, void* pointer) {
  char text[64];
  snprintf(text, sizeof text, "misaligned or null pointer %p", pointer);
  shim::fail(std::string(text) + " at " + where->file + ":" + std::to_string(where->line));
}
void __ubsan_handle_out_of_bounds(SanitizerLocation* where, uintptr_t index) {
  shim::fail("index " + std::to_string(static_cast<int64_t>(index)) + " is out of bounds at " + where->file + ":" +
             std::to_string(where->line));
}

}  // extern "C"
