// How long frames take from C++, for bench/peers/embedding.py: moshi-time BUNDLE CHECKPOINT FRAMES prints three lines, ms of
// each frame: by the clock; at work in the thread that calls; and of that outside of MLX, which is the library's own.
// MLX_DISABLE_COMPILE=1: every frame walks its graphs anew.
#include <dlfcn.h>
#include <mlx/mlx.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <moshi.hpp>
#include <vector>

static double worked() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return 1e3 * double(t.tv_sec) + double(t.tv_nsec) / 1e6;
}

// MLX's functions that a frame calls, with a watch around each: the linker takes these for the library's.
namespace {
double within = 0;
int depth = 0;
struct Watch {
  double began = depth++ ? 0 : worked();
  ~Watch() {
    if (!--depth) within += worked() - began;
  }
};
template <class F>
F* of_mlx(const char* symbol) {
  auto* found = reinterpret_cast<F*>(dlsym(RTLD_NEXT, symbol));
  if (!found) fprintf(stderr, "moshi-time: MLX has no %s\n", symbol), exit(1);
  return found;
}
}  // namespace

namespace mlx::core {
using Arrays = std::vector<array>;
using Function = std::function<Arrays(const Arrays&)>;

Function compile(Function function, bool shapeless) {
  static auto* call = of_mlx<Function(Function, bool)>("_ZN3mlx4core7compileESt8functionIFSt6vectorINS0_5arrayESaIS3_EERKS5_EEb");
  return [compiled = call(std::move(function), shapeless)](const Arrays& x) {
    Watch watch;
    return compiled(x);
  };
}

void eval(Arrays arrays) {
  static auto* call = of_mlx<void(Arrays)>("_ZN3mlx4core4evalESt6vectorINS0_5arrayESaIS2_EE");
  Watch watch;
  call(std::move(arrays));
}

void array::eval() {
  static auto* call = of_mlx<void(array*)>("_ZN3mlx4core5array4evalEv");
  Watch watch;
  call(this);
}
}  // namespace mlx::core

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  auto options = moshi_load_defaults();
  options.own_thread = 0;
  moshi::Model model(argv[1], argv[2], options);
  auto talk = model.begin();
  std::vector<float> silence(size_t(model.info().frame_size));
  std::vector<double> host, own;
  for (int n = 0; n < std::atoi(argv[3]); n++) {
    auto began = std::chrono::steady_clock::now();
    double before = worked();
    within = 0;
    talk.step(silence);
    host.push_back(worked() - before);
    own.push_back(host.back() - within);
    printf("%.3f ", std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began).count());
  }
  for (auto* line : {&host, &own}) {
    puts("");
    for (double ms : *line) printf("%.3f ", ms);
  }
  puts("");
}
