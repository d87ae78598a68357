// Runs a kernel on the CPU. Each thread of a block is a fiber with a stack of its own; they take turns, from barrier to
// barrier, in an order that a seed decides, and blocks run one after another in such an order, too. So a missing
// barrier shows under some order. A fault (a page that may not be touched, a misaligned access, a barrier that some
// threads never reach) ends the launch with an error, as on a GPU, whose text says where.
#include <cuda_runtime.h>
#include <link.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT uint64_t cuda_host_seed;
uint64_t cuda_host_seed = 0;  // 0: forward, 1: backward, else shuffled

namespace cuda_host {
namespace {

constexpr unsigned kThreads = 1024, kWarp = 32;
constexpr size_t kStack = 128 << 10;
constexpr int kPoison = 0x7F;  // a large number in every type

struct Fiber {
  sigjmp_buf at;
  bool started = false, done = true;
  Wait waits = Wait::none;
  int line = 0;
  unsigned mask = 0, from = 0;
  uint64_t value = 0, result = 0;
};

Fiber fibers[kThreads];
unsigned current = 0, threads = 0;
sigjmp_buf scheduler, failed;
ucontext_t origin;
const std::function<void()>* body = nullptr;
cudaError_t error = cudaSuccess;
std::string message;
thread_local char anchor;  // makes the segment of shared variables be there

std::vector<Count*>& counts() {
  static std::vector<Count*> all;
  return all;
}

// A context is made once for a fiber; after that a jump without a system call goes there and back.
void fiber_main() {
  for (;;) {
    (*body)();
    fibers[current].done = true;
    if (_setjmp(fibers[current].at) == 0) _longjmp(scheduler, 1);
  }
}

void start(unsigned t) {
  static char* const stacks = static_cast<char*>(mmap(nullptr, kThreads * kStack, PROT_READ | PROT_WRITE,
                                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  fibers[t].started = true;
  ucontext_t fresh;
  getcontext(&fresh);
  fresh.uc_stack = {.ss_sp = stacks + t * kStack, .ss_flags = 0, .ss_size = kStack};
  fresh.uc_link = nullptr;
  makecontext(&fresh, fiber_main, 0);
  setcontext(&fresh);
}

void resume(unsigned t) {
  current = t;
  threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
  if (_setjmp(scheduler) != 0) return;
  if (fibers[t].started) _longjmp(fibers[t].at, 1);
  start(t);
}

void fail(cudaError_t code, const std::string& what) {
  error = code;
  message += what + ", block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
             std::to_string(blockIdx.z) + ")";
  siglongjmp(failed, 1);
}

void fault(int signal, siginfo_t*, void*) {
  const bool memory = signal == SIGSEGV || signal == SIGBUS;
  fail(memory ? cudaErrorIllegalAddress : cudaErrorMisalignedAddress,
       std::string(memory ? "an illegal memory access" : "a misaligned address") + " in thread " +
           std::to_string(current));
}

int poison_shared(dl_phdr_info* library, size_t, void*) {
  for (int i = 0; i < library->dlpi_phnum; ++i) {
    const auto& part = library->dlpi_phdr[i];
    char* const data = static_cast<char*>(library->dlpi_tls_data);
    if (part.p_type != PT_TLS || &anchor < data || &anchor >= data + part.p_memsz) continue;
    std::memset(data, kPoison, part.p_memsz);
    return 1;
  }
  return 0;
}

// Threads of a warp at a collective go on when all that its mask names and that still live are there.
bool release_warp(unsigned first) {
  bool any = false;
  const unsigned count = std::min(kWarp, threads - first);
  Fiber* const warp = fibers + first;
  for (unsigned t = 0; t < count; ++t) {
    const Wait waits = warp[t].waits;
    const int line = warp[t].line;
    const unsigned mask = warp[t].mask;
    if (waits == Wait::none || waits == Wait::threads) continue;
    const auto there = [&](const Fiber& f) { return f.waits == waits && f.line == line && f.mask == mask; };
    bool complete = mask >> t & 1;
    uint64_t ballot = 0;
    for (unsigned l = 0; l < count; ++l) {
      if (!(mask >> l & 1) || warp[l].done) continue;
      complete &= there(warp[l]);
      ballot |= uint64_t{warp[l].value != 0} << l;
    }
    if (!complete) continue;
    for (unsigned l = 0; l < count; ++l) {
      if (!(mask >> l & 1) || warp[l].done) continue;
      const unsigned from = warp[l].from;
      uint64_t poison;  // what a thread that is not there would say
      std::memset(&poison, kPoison, sizeof(poison));
      const bool said = from < count && (mask >> from & 1) && !warp[from].done;
      warp[l].result = waits == Wait::ballot ? ballot : said ? warp[from].value : poison;
    }
    for (unsigned l = 0; l < count; ++l)
      if (mask >> l & 1) warp[l].waits = Wait::none;
    any = true;
  }
  return any;
}

// All threads that live are at the same barrier, or the kernel is wrong.
void release_block() {
  int lines[2] = {0, 0};
  unsigned sums[2] = {0, 0}, total = 0;
  bool block = true;
  for (unsigned t = 0; t < threads; ++t) {
    const Fiber& f = fibers[t];
    if (f.done) continue;
    block &= f.waits == Wait::threads;
    const int which = sums[0] == 0 || f.line == lines[0] ? 0 : 1;
    lines[which] = f.line, ++sums[which], total += f.value != 0;
  }
  if (!block || sums[1] != 0)
    fail(cudaErrorLaunchFailure, "a barrier that not all threads reach: " + std::to_string(sums[0]) +
                                     " wait in line " + std::to_string(lines[0]) + ", " + std::to_string(sums[1]) +
                                     " in line " + std::to_string(lines[1]));
  for (unsigned t = 0; t < threads; ++t) fibers[t].waits = Wait::none, fibers[t].result = total;
}

// The threads of a warp that can go on do so; whether any is left that has not returned.
bool run_warp(unsigned first, const std::vector<unsigned>& lanes) {
  bool alive = false;
  for (const unsigned lane : lanes) {
    const unsigned t = first + lane;
    if (t >= threads) continue;
    if (!fibers[t].done && fibers[t].waits == Wait::none) resume(t);
    alive |= !fibers[t].done;
  }
  return alive;
}

// Between two barriers warps go in step, or (with a seed) each as far ahead of the others as it can.
void run_block(std::vector<unsigned>& warps, std::vector<unsigned>& lanes, std::mt19937_64& random) {
  dl_iterate_phdr(poison_shared, nullptr);
  for (unsigned t = 0; t < threads; ++t) fibers[t].done = false, fibers[t].waits = Wait::none;
  for (;;) {
    if (cuda_host_seed > 1) std::shuffle(warps.begin(), warps.end(), random);
    if (cuda_host_seed > 1) std::shuffle(lanes.begin(), lanes.end(), random);
    bool alive = false, released = false;
    for (const unsigned w : warps) {
      bool left = run_warp(w * kWarp, lanes);
      while (cuda_host_seed > 0 && release_warp(w * kWarp)) left = run_warp(w * kWarp, lanes);
      alive |= left;
    }
    if (!alive) return;
    for (const unsigned w : warps) released |= release_warp(w * kWarp);
    if (!released) release_block();
  }
}

template <class T>
std::vector<T> in_order(T count, std::mt19937_64& random) {
  std::vector<T> order(count);
  std::iota(order.begin(), order.end(), T{0});
  if (cuda_host_seed == 1) std::reverse(order.begin(), order.end());
  if (cuda_host_seed > 1) std::shuffle(order.begin(), order.end(), random);
  return order;
}

}  // namespace

Count::Count(const std::string& function) : name(function.substr(function.find("kernel = ") + 9)) {
  name.pop_back();
  for (const std::string scope : {"{anonymous}::", "<unnamed>::"})
    for (size_t at; (at = name.find(scope)) != name.npos;) name.erase(at, scope.size());
  counts().push_back(this);
}

unsigned lane() { return current % kWarp; }

uint64_t wait(Wait what, int line, unsigned mask, uint64_t value, unsigned from) {
  Fiber& f = fibers[current];
  f.waits = what, f.line = line, f.mask = mask, f.value = value, f.from = from;
  if (_setjmp(f.at) == 0) _longjmp(scheduler, 1);
  return f.result;
}

bool allowed(dim3 grid, dim3 block, size_t dynamic) {
  const uint64_t size = uint64_t{block.x} * block.y * block.z;
  const bool ok = grid.x > 0 && grid.x <= 0x7FFFFFFFu && grid.y > 0 && grid.y <= 65535 && grid.z > 0 &&
                  grid.z <= 65535 && size > 0 && size <= kThreads && block.z <= 64 && dynamic == 0;
  if (!ok) error = cudaErrorInvalidConfiguration, message = "a launch that CUDA, or this emulator, does not allow";
  return ok;
}

void run(const std::string& name, dim3 grid, dim3 block, const std::function<void()>& thread) {
  std::mt19937_64 random(cuda_host_seed);
  gridDim = grid, blockDim = block, body = &thread, threads = block.x * block.y * block.z, anchor = 1;
  std::vector<unsigned> warps = in_order((threads + kWarp - 1) / kWarp, random), lanes = in_order(kWarp, random);
  struct sigaction action = {}, old[4];
  action.sa_sigaction = fault;
  action.sa_flags = SA_SIGINFO;
  const int signals[4] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP};  // the last two by the compiler's checks
  for (int i = 0; i < 4; ++i) sigaction(signals[i], &action, &old[i]);
  message = name + ": ";
  if (sigsetjmp(failed, 1) == 0) {
    for (const uint64_t b : in_order(uint64_t{grid.x} * grid.y * grid.z, random)) {
      blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                  static_cast<unsigned>(b / grid.x / grid.y)};
      run_block(warps, lanes, random);
    }
  } else {
    for (Fiber& f : fibers) f.started = false;  // some stopped in the middle
  }
  for (int i = 0; i < 4; ++i) sigaction(signals[i], &old[i], nullptr);
}

}  // namespace cuda_host

// Lines of "launches name" for every compiled instance of a kernel; the counts begin at zero again.
EXPORT const char* cuda_host_launches() {
  static std::string text;
  text.clear();
  for (cuda_host::Count* count : cuda_host::counts()) {
    text += std::to_string(count->launches) + " " + count->name + "\n";
    count->launches = 0;
  }
  return text.c_str();
}

EXPORT const char* cuda_host_message() { return cuda_host::message.c_str(); }

// What the glue asks CUDA and torch's CUDA library for; here instead of there, should torch have one.
EXPORT cudaError_t cudaGetLastError() { return std::exchange(cuda_host::error, cudaSuccess); }
EXPORT int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) { return *stream = nullptr, 0; }
EXPORT int32_t aoti_torch_create_device_guard(int32_t, void** guard) { return *guard = &cuda_host::current, 0; }
EXPORT int32_t aoti_torch_delete_device_guard(void*) { return 0; }
EXPORT int32_t torch_c10_cuda_check_msg(int32_t code, const char*, const char*, uint32_t, bool, char** text) {
  *text = code == 0 ? nullptr : strdup(("CUDA error: " + cuda_host::message).c_str());
  return 0;
}
EXPORT void torch_c10_cuda_free_error_msg(char* text) { free(text); }
