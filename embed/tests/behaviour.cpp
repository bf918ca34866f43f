// From C++: what a conversation must do besides the right thing. moshi-behaviour CASES (see cases.py)
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <limits>
#include <moshi.hpp>
#include <sstream>
#include <thread>

static std::string folder;
static int failures = 0;

static void expect(bool good, const std::string& what) {
  if (!good) std::cout << "FAILED: " << what << "\n", failures++;
}

static std::string error_of(const std::function<void()>& f, moshi_status status) {
  try {
    f();
  } catch (const moshi::Error& error) {
    expect(error.status == status, std::string("status of: ") + error.what());
    return error.what();
  }
  expect(false, "no error");
  return "";
}

static void expect_error(const char* words, moshi_status status, const std::function<void()>& f) {
  auto got = error_of(f, status);
  expect(got.find(words) != std::string::npos, std::string("expected '") + words + "', got '" + got + "'");
}

// The Session's frames of a case.
struct Reference {
  moshi::Settings settings;
  std::vector<moshi::Frame> frames;
  std::vector<std::vector<float>> sound;
};

static Reference reference(const moshi::Model& model, const std::string& name) {
  Reference made{model.settings(), {}, {}};
  auto& s = made.settings;
  std::ifstream lines(folder + "/" + name + ".txt"), pcm(folder + "/" + name + ".f32", std::ios::binary),
      user(folder + "/sound.f32", std::ios::binary);
  lines >> s.seed >> s.temperature >> s.top_k >> s.top_p >> s.min_p >> s.text_temperature >> s.text_top_k >> s.text_top_p >> s.text_min_p;
  int token, ready;
  while (lines >> token >> ready) {
    moshi::Frame frame{std::vector<float>(1920), std::vector<int32_t>(8), "", token};
    for (auto& code : frame.audio_codes) lines >> code;
    std::string hex;
    lines >> hex;
    for (size_t i = 1; i + 1 < hex.size(); i += 2) frame.text += char(std::stoi(hex.substr(i, 2), nullptr, 16));
    pcm.read(reinterpret_cast<char*>(frame.pcm.data()), 1920 * 4);
    if (!ready) frame.pcm.clear(), frame.audio_codes.clear();
    made.frames.push_back(frame);
    made.sound.emplace_back(1920);
    user.read(reinterpret_cast<char*>(made.sound.back().data()), 1920 * 4);
  }
  return made;
}

static bool same(const moshi::Frame& a, const moshi::Frame& b) {
  bool good = a.text_token == b.text_token && a.text == b.text && a.audio_codes == b.audio_codes && a.pcm.size() == b.pcm.size();
  for (size_t i = 0; good && i < a.pcm.size(); i++) good = std::abs(a.pcm[i] - b.pcm[i]) <= 1e-5f;
  return good;
}

static void expect_frames(moshi::Conversation& talk, const Reference& r, size_t from, size_t to, const char* what) {
  size_t wrong = 0;
  for (size_t n = from; n < to; n++) wrong += !same(talk.step(r.sound[n]), r.frames[n]);
  expect(!wrong, std::string(what) + ": " + std::to_string(wrong) + " frames differ");
}

static void run(const moshi::Model& model, const Reference& sampled, const Reference& greedy) {
  size_t all = sampled.frames.size();
  auto talk = model.begin(sampled.settings);
  expect_frames(talk, sampled, 0, all, "one thread");
  talk.reset();
  expect_frames(talk, sampled, 0, all, "after a reset");

  talk.reset();
  size_t wrong = 0;
  for (size_t n = 0; n < all; n++) std::thread([&] { wrong += !same(talk.step(sampled.sound[n]), sampled.frames[n]); }).join();
  expect(!wrong, "a new thread every frame");

  talk.reset();
  auto other = model.begin(greedy.settings);
  wrong = 0;
  for (size_t n = 0; n < all; n++)
    wrong += !same(talk.step(sampled.sound[n]), sampled.frames[n]) + !same(other.step(greedy.sound[n]), greedy.frames[n]);
  expect(!wrong, "two conversations in turn");

  other.reset(sampled.settings);
  expect_frames(other, sampled, 0, 20, "reset to other settings");

  int asked = 0;
  talk.on_text([&](int32_t) { return asked++, std::nullopt; });
  talk.reset();
  expect_frames(talk, sampled, 0, all, "with a hook");
  expect(asked == int(all), "the hook is asked once a frame");
  talk.on_text([](int32_t) { return 3; });
  for (size_t n = 0; n < 3; n++) expect(talk.step(sampled.sound[n]).text_token == 3, "the hook's token");
}

static void run_hook(const moshi::Model& model, const Reference& r) {
  auto talk = model.begin(r.settings);
  bool thrown = false;
  talk.on_text([](int32_t) -> std::optional<int32_t> { throw std::runtime_error("enough"); });
  try {
    talk.step(r.sound[0]);
  } catch (const std::runtime_error& error) {
    thrown = error.what() == std::string("enough");
  }
  expect(thrown, "what the hook throws");
  talk.on_text([](int32_t) { return 1'000'000; });
  expect_error("on_text: returned 1000000", MOSHI_BAD_ARGUMENT, [&] { talk.step(r.sound[1]); });
  talk.on_text([&](int32_t) -> std::optional<int32_t> {
    expect_error("its own conversation", MOSHI_BAD_ARGUMENT, [&] { talk.step(r.sound[2]); });
    expect_error("its own conversation", MOSHI_BAD_ARGUMENT, [&] { talk.reset(); });
    return std::nullopt;
  });
  talk.step(r.sound[2]);
  talk.on_text(nullptr);
  moshi_frame frame;  // a hook in C++ that throws through moshi.h, which it must not
  moshi_set_on_text(talk.get(), [](int32_t, void*) -> int32_t { throw std::runtime_error("not for C"); }, nullptr);
  expect(moshi_step(talk.get(), r.sound[3].data(), 1920, &frame) == MOSHI_FAILED, "a hook that throws in C");
  expect(std::string(moshi_error()) == "on_text: not for C", moshi_error());
  expect(moshi_set_on_text(talk.get(), nullptr, nullptr) == MOSHI_OK, moshi_error());
  expect_frames(talk, r, 4, r.frames.size(), "after a hook that failed, the sampled token counts");
}

static void run_saving(const moshi::Model& model, const Reference& r, size_t at) {
  auto path = folder + "/saved.conversation";
  {
    auto talk = model.begin(r.settings);
    expect_frames(talk, r, 0, at, "before it is saved");
    talk.save(path);
    expect_frames(talk, r, at, r.frames.size(), "going on after it was saved");
  }
  auto talk = model.restore(path);
  expect_frames(talk, r, at, r.frames.size(), "restored");
  talk.reset();
  expect_frames(talk, r, 0, 20, "restored, then reset");
  expect_error("Not a directory", MOSHI_BAD_FILE, [&] { talk.save("/dev/null/x"); });
  expect_error("Is a directory", MOSHI_BAD_FILE, [&] { talk.save(folder); });
  expect_error("expected a file", MOSHI_BAD_FILE, [&] { talk.save("/dev/null"); });
  expect_error("got an empty path", MOSHI_BAD_ARGUMENT, [&] { talk.save(""); });
}

static void run_damaged_file(const moshi::Model& model, const moshi::Model& other) {
  auto path = folder + "/saved.conversation", broken = folder + "/broken.conversation";
  std::ifstream file(path, std::ios::binary);
  std::stringstream all;
  all << file.rdbuf();
  expect_error("another bundle", MOSHI_BAD_FILE, [&] { other.restore(path); });
  expect_error("No such file", MOSHI_BAD_FILE, [&] { model.restore(folder + "/none"); });
  for (size_t k = 0; k < 40; k++) {
    auto data = all.str();
    if (k % 2) data.resize(data.size() * k / 41);
    else data[data.size() * k / 41] ^= char(1 + k);
    std::ofstream(broken, std::ios::binary) << data;
    error_of([&] { model.restore(broken); }, MOSHI_BAD_FILE);
  }
}

static void run_codes(const moshi::Model& model, const Reference& r) {
  auto talk = model.begin(r.settings);
  std::vector<int32_t> codes(8, -1);
  auto silent = talk.step_codes(codes);
  codes.assign(8, 5);
  talk.step_codes(codes);
  talk.reset();
  expect(same(talk.step_codes(std::vector<int32_t>(8, -1)), silent), "codes twice the same");
  codes[3] = 9999;
  expect_error("codes: got 9999", MOSHI_BAD_ARGUMENT, [&] { talk.step_codes(codes); });
  codes.pop_back();
  expect_error("codes: got 7, expected 8", MOSHI_BAD_ARGUMENT, [&] { talk.step_codes(codes); });
}

static void run_arguments(const moshi::Model& model, const Reference& r) {
  auto talk = model.begin(r.settings);
  expect_error("pcm: got 1919 samples, expected 1920", MOSHI_BAD_ARGUMENT, [&] { talk.step(r.sound[0].data(), 1919); });
  expect_error("pcm: got 0", MOSHI_BAD_ARGUMENT, [&] { talk.step(nullptr, 1920); });
  expect_frames(talk, r, 0, 3, "after a call that was refused");
  auto sound = r.sound[3];
  sound[7] = NAN, sound[8] = INFINITY;
  talk.step(sound);
  expect(talk.nonfinite_samples() == 2, "NaN is counted");
  auto set = [&](auto change) {
    auto settings = model.settings();
    change(settings);
    model.begin(settings);
  };
  expect_error("temperature: got -1", MOSHI_BAD_ARGUMENT, [&] { set([](auto& s) { s.temperature = -1; }); });
  expect_error("temperature: got nan", MOSHI_BAD_ARGUMENT, [&] { set([](auto& s) { s.temperature = NAN; }); });
  expect_error("top_k: got -5", MOSHI_BAD_ARGUMENT, [&] { set([](auto& s) { s.top_k = -5; }); });
  expect_error("text_top_p: got 2", MOSHI_BAD_ARGUMENT, [&] { set([](auto& s) { s.text_top_p = 2; }); });
  expect_error("top_p: got 0, expected a number above 0", MOSHI_BAD_ARGUMENT, [&] { set([](auto& s) { s.top_p = 0; }); });
  expect_error("size is 1000", MOSHI_BAD_ARGUMENT, [&] { set([](auto& s) { s.size = 1000; }); });
  set([](auto& s) { s.min_p = 1, s.top_k = INT32_MAX, s.temperature = -0.0; });
  expect_error("size is 0", MOSHI_BAD_ARGUMENT, [&] { set([](auto& s) { s.size = 0; }); });
  expect(moshi_step(nullptr, nullptr, 0, nullptr) == MOSHI_BAD_ARGUMENT, "NULL everywhere");
  expect(moshi_begin(nullptr, nullptr, nullptr) == MOSHI_BAD_ARGUMENT, "no model");
  moshi_end(nullptr), moshi_free(nullptr);
}

// Weights that are cut off, gone, or of another checkpoint of the same shapes.
static void run_weights() {
  namespace fs = std::filesystem;
  auto there = fs::path(folder) / "weights";
  fs::remove_all(there);
  fs::copy(folder + "/tiny/checkpoint", there);
  auto load = [&] { moshi::Model(folder + "/tiny/bundle", there.string()); };
  load();
  for (auto* name : {"model.safetensors", "mimi.safetensors"}) {
    auto file = there / name, whole = fs::path(folder) / "tiny" / "checkpoint" / name;
    auto size = fs::file_size(whole);
    auto again = [&] { fs::remove_all(file), fs::copy(whole, file); };
    for (auto left : {uintmax_t(0), uintmax_t(7), uintmax_t(8), uintmax_t(100), size / 2, size - 1}) {
      fs::resize_file(file, left);
      error_of(load, MOSHI_BAD_CHECKPOINT);
      again();
    }
    fs::resize_file(file, size + 100);
    expect_error("is another file than the bundle was made of", MOSHI_BAD_CHECKPOINT, load);
    again();
    std::fstream(file, std::ios::in | std::ios::out | std::ios::binary).seekp(-5, std::ios::end).put('!');
    expect_error("is another file than the bundle was made of", MOSHI_BAD_CHECKPOINT, load);
    fs::remove(file);
    expect_error("expected the weights that the bundle was made of", MOSHI_BAD_CHECKPOINT, load);
    fs::create_directory(file);
    error_of(load, MOSHI_BAD_CHECKPOINT);
    again();
  }
  fs::remove_all(there);
}

static void run_loading() {
  auto load = [&](const std::string& bundle, const std::string& checkpoint) {
    return [=] { moshi::Model(folder + bundle, folder + checkpoint); };
  };
  expect_error("No such file", MOSHI_BAD_BUNDLE, load("/nowhere", "/tiny/checkpoint"));
  expect_error("No such file", MOSHI_BAD_CHECKPOINT, load("/tiny/bundle", "/nowhere"));
  expect_error("python -m moshi_mlx.export", MOSHI_BAD_BUNDLE, load("/tiny/checkpoint", "/tiny/bundle"));
  expect_error("got an empty path", MOSHI_BAD_ARGUMENT, [] { moshi::Model("", ""); });
  expect_error("", MOSHI_BAD_CHECKPOINT, load("/tiny/bundle", "/miniature/checkpoint"));
  load("/bf16/bundle", "/tiny/checkpoint")();  // the same weights, to be run in another type
  run_weights();
  expect_error("", MOSHI_BAD_CHECKPOINT, load("/q4/bundle", "/q8/checkpoint"));
  expect_error("is not of a bundle", MOSHI_BAD_BUNDLE, [] {
    std::ofstream(folder + "/manifest.txt") << "hello\n";
    moshi::Model(folder, folder);
  });
  expect_error("format 2, this library reads 1", MOSHI_BAD_BUNDLE, [] {
    std::ofstream(folder + "/manifest.txt") << "moshi_bundle 2\n";
    moshi::Model(folder, folder);
  });
  std::remove((folder + "/manifest.txt").c_str());
}

// Conversations freed in any order by any thread, after their model; several models at work at once.
static void run_many(const Reference& r) {
  auto model = std::make_unique<moshi::Model>(folder + "/tiny/bundle", folder + "/tiny/checkpoint");
  std::vector<std::unique_ptr<moshi::Conversation>> talks;
  for (int n = 0; n < 60; n++) talks.push_back(std::make_unique<moshi::Conversation>(model->begin(r.settings)));
  model.reset();
  for (auto& talk : talks) expect_frames(*talk, r, 0, 1, "one of many");
  for (size_t n = 0; n < talks.size(); n += 2) talks[n].reset();
  for (size_t n = 1; n < talks.size(); n += 2) talks[n]->reset(), talks[n]->reset();
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 3; t++)
    threads.emplace_back([&, t] {
      for (size_t n = talks.size() - 1 - t; n > 30; n -= 3) talks[n].reset();
      moshi::Model another(folder + "/tiny/bundle", folder + "/tiny/checkpoint");
      for (size_t k : {2, 5}) {  // settings that are traced here, while others are traced there
        auto settings = another.settings();
        settings.top_k = int(k + t);
        another.begin(settings).step(r.sound[0]);
      }
    });
  for (auto& thread : threads) thread.join();
  expect_frames(*talks[1], r, 0, 10, "the last of many");
}

// A hook may talk to other conversations, and end them.
static void run_nested(const moshi::Model& model, const Reference& r) {
  auto talk = model.begin(r.settings);
  auto other = std::make_unique<moshi::Conversation>(model.begin(r.settings));
  size_t n = 0;
  talk.on_text([&](int32_t) -> std::optional<int32_t> {
    if (other) expect_frames(*other, r, n, n + 1, "within a hook");
    if (n == 3) other->save(folder + "/saved.conversation");
    if (n == 4) other = std::make_unique<moshi::Conversation>(model.restore(folder + "/saved.conversation"));
    if (n == 4) expect_frames(*other, r, 4, 5, "restored within a hook");
    if (n == 6) other.reset();
    n++;
    return std::nullopt;
  });
  expect_frames(talk, r, 0, 10, "around another's frames");
}

// Without a thread of its own, and freed before its conversations.
static void run_inline(const Reference& r) {
  auto options = moshi_load_defaults();
  options.own_thread = 0, options.warm_up = 0;
  std::thread([&] {
    auto model = std::make_unique<moshi::Model>(folder + "/tiny/bundle", folder + "/tiny/checkpoint", options);
    auto talk = model->begin(r.settings);
    model.reset();
    expect_frames(talk, r, 0, 30, "on the calling thread");
  }).join();
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  folder = argv[1];
  {
    moshi::Model tiny(folder + "/tiny/bundle", folder + "/tiny/checkpoint"), grows(folder + "/grows/bundle", folder + "/grows/checkpoint");
    auto sampled = reference(tiny, "tiny.sampled"), greedy = reference(tiny, "tiny.greedy"), narrow = reference(tiny, "tiny.narrow");
    run(tiny, sampled, greedy);
    run_hook(tiny, greedy);
    run_saving(tiny, narrow, 31);
    run_damaged_file(tiny, grows);
    run_codes(tiny, sampled);
    run_arguments(tiny, sampled);
    auto growing = reference(grows, "grows.sampled");
    run(grows, growing, reference(grows, "grows.greedy"));
    for (size_t at : {1, 15, 16, 40}) run_saving(grows, growing, at);
    moshi::Model delayed(folder + "/delay2/bundle", folder + "/delay2/checkpoint");
    auto late = reference(delayed, "delay2.sampled");
    run(delayed, late, reference(delayed, "delay2.greedy"));
    for (size_t at : {1, 2, 3}) run_saving(delayed, late, at);
    run_loading();
    run_inline(sampled);
    run_many(sampled);
    run_nested(tiny, sampled);
  }
  std::cout << "behaviour: " << (failures ? "failed\n" : "as it must be\n");
  return failures != 0;
}
