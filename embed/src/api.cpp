// moshi.h: handles and statuses around Model and Conversation; no exception gets out.
#include "moshi.h"

#include <cstring>
#include <memory>
#include <new>

#include "conversation.hpp"

using namespace moshi_mlx;

struct moshi_model {
  std::shared_ptr<Model> model;
};

struct moshi_conversation {
  std::unique_ptr<Conversation> talk;
};

namespace {
thread_local std::string last_error;

moshi_status note(moshi_status status, const char* words) noexcept {
  try {
    last_error = words;
  } catch (...) {
    last_error.clear();
  }
  return status;
}

template <class F>
moshi_status guarded(F&& f) noexcept {
  try {
    last_error.clear();
    f();
    return MOSHI_OK;
  } catch (const Error& error) {
    return note(error.status, error.what());
  } catch (const std::bad_alloc&) {
    return note(MOSHI_FAILED, "out of memory");
  } catch (const std::exception& error) {
    return note(MOSHI_FAILED, error.what());
  } catch (...) {
    return note(MOSHI_FAILED, "unknown error");
  }
}

template <class T>
void check_given(const T* given, const char* name) {
  if (!given) fail(MOSHI_BAD_ARGUMENT, name, ": got NULL");
}

void check_path(const char* given, const char* name) {
  check_given(given, name);
  if (!*given) fail(MOSHI_BAD_ARGUMENT, name, ": got an empty path");
}

// A struct of an app that was built against an older header ends earlier: what it lacks keeps its default.
template <class T>
T read_options(const T* given, T defaults, const char* name) {
  if (!given) return defaults;
  if (given->size < sizeof(size_t) || given->size > sizeof(T))
    fail(MOSHI_BAD_ARGUMENT, name, ": size is ", given->size, ", expected at most ", sizeof(T), "; begin with the function that gives the defaults, of this library's moshi.h");
  size_t size = given->size;
  memcpy(static_cast<void*>(&defaults), given, size);
  defaults.size = sizeof(T);
  return defaults;
}

moshi_settings settings_of(const Bundle& bundle, const moshi_settings* given) {
  auto settings = read_options(given, default_settings(bundle), "settings");
  check_settings(settings);
  return settings;
}

// Runs f(conversation) where the model does MLX's work.
template <class F>
moshi_status on_model(moshi_conversation* talk, F&& f) noexcept {
  return guarded([&] {
    check_given(talk, "conversation");
    talk->talk->model()->run([&] { f(*talk->talk); });
  });
}

moshi_conversation* begin(const std::shared_ptr<Model>& model, const std::function<Conversation*()>& make) {
  std::unique_ptr<moshi_conversation> made(new moshi_conversation);
  model->run([&] { made->talk.reset(make()); });
  return made.release();
}
}  // namespace

extern "C" {

const char* moshi_error(void) { return last_error.c_str(); }

moshi_load_options moshi_load_defaults(void) { return {sizeof(moshi_load_options), 1, 1, 512ull << 20, 0, 0}; }

moshi_status moshi_load(const char* bundle, const char* checkpoint, const moshi_load_options* options, moshi_model** model) {
  if (model) *model = nullptr;
  return guarded([&] {
    check_path(bundle, "bundle"), check_path(checkpoint, "checkpoint"), check_given(model, "model");
    auto chosen = read_options(options, moshi_load_defaults(), "options");
    auto made = std::make_shared<Model>(bundle, checkpoint, chosen);
    if (chosen.warm_up) {  // a frame of a conversation that nobody hears: what is compiled at first use, is now
      made->run([&] {
        std::vector<float> silence(size_t(made->bundle.number("frame_size")));
        Conversation(made, default_settings(made->bundle)).step(silence.data(), silence.size());
      });
    }
    *model = new moshi_model{std::move(made)};
  });
}

void moshi_free(moshi_model* model) { delete model; }

moshi_status moshi_get_info(const moshi_model* model, moshi_info* info) {
  return guarded([&] {
    check_given(model, "model"), check_given(info, "info");
    auto& m = *model->model;
    auto& b = m.bundle;
    *info = {b.number("sample_rate"), b.number("frame_size"), b.number("codebooks"), b.number("user_codebooks"),
             b.number("text_tokens"), b.number("audio_tokens"), b.number("delay"), b.number("context"), b.number("kv_bits"),
             m.weight_bytes, b.words("made_by").c_str(), b.words("licence").c_str()};
  });
}

moshi_status moshi_memory(moshi_model* model, uint64_t* now, uint64_t* peak) {
  return guarded([&] {
    check_given(model, "model");
    model->model->run([&] {
      if (now) *now = mx::get_active_memory();
      if (peak) *peak = mx::get_peak_memory();
    });
  });
}

moshi_settings moshi_defaults(const moshi_model* model) {
  moshi_settings settings{};
  guarded([&] {
    check_given(model, "model");
    settings = default_settings(model->model->bundle);
  });
  return settings;
}

moshi_status moshi_begin(moshi_model* model, const moshi_settings* settings, moshi_conversation** talk) {
  if (talk) *talk = nullptr;
  return guarded([&] {
    check_given(model, "model"), check_given(talk, "conversation");
    auto& m = model->model;
    auto chosen = settings_of(m->bundle, settings);
    *talk = begin(m, [&] { return new Conversation(m, chosen); });
  });
}

void moshi_end(moshi_conversation* talk) {
  if (!talk) return;
  auto model = talk->talk->model();
  auto status = on_model(talk, [](Conversation& c) { c.check_idle(), c.free_arrays(); });
  if (status == MOSHI_OK) delete talk;
}

moshi_status moshi_reset(moshi_conversation* talk, const moshi_settings* settings) {
  return on_model(talk, [&](Conversation& c) {
    if (!settings) return c.reset(nullptr);
    auto chosen = settings_of(c.model()->bundle, settings);
    c.reset(&chosen);
  });
}

moshi_status moshi_step(moshi_conversation* talk, const float* pcm, size_t samples, moshi_frame* frame) {
  if (frame) *frame = {nullptr, nullptr, "", 0};
  return on_model(talk, [&](Conversation& c) {
    check_given(frame, "frame");
    *frame = c.step(pcm, samples);
  });
}

moshi_status moshi_step_codes(moshi_conversation* talk, const int32_t* codes, size_t count, moshi_frame* frame) {
  if (frame) *frame = {nullptr, nullptr, "", 0};
  return on_model(talk, [&](Conversation& c) {
    check_given(frame, "frame");
    *frame = c.step_codes(codes, count);
  });
}

uint64_t moshi_nonfinite_samples(const moshi_conversation* talk) { return talk ? talk->talk->nonfinite() : 0; }

moshi_status moshi_set_on_text(moshi_conversation* talk, moshi_on_text hook, void* context) {
  return on_model(talk, [&](Conversation& c) { c.check_idle(), c.set_hook(hook, context); });
}

moshi_status moshi_save(moshi_conversation* talk, const char* path) {
  std::string saved;
  auto status = on_model(talk, [&](Conversation& c) {
    check_path(path, "path");
    saved = c.saved();
  });
  return status ? status : guarded([&] { write_file(path, saved, MOSHI_BAD_FILE); });
}

moshi_status moshi_restore(moshi_model* model, const char* path, moshi_conversation** talk) {
  if (talk) *talk = nullptr;
  return guarded([&] {
    check_given(model, "model"), check_path(path, "path"), check_given(talk, "conversation");
    auto& m = model->model;
    auto saved = read_file(path, MOSHI_BAD_FILE);
    *talk = begin(m, [&] { return new Conversation(m, path, saved); });
  });
}
}
