// moshi.h for C++17: what fails throws moshi::Error, and what is made is freed.
#pragma once
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "moshi.h"

namespace moshi {

class Error : public std::runtime_error {
 public:
  explicit Error(moshi_status status) : std::runtime_error(moshi_error()), status(status) {}
  const moshi_status status;
};

inline void check(moshi_status status) {
  if (status != MOSHI_OK) throw Error(status);
}

using Info = moshi_info;
using Settings = moshi_settings;
using LoadOptions = moshi_load_options;

// 80 ms of Moshi's side; pcm and audio_codes are empty while the delay fills.
struct Frame {
  std::vector<float> pcm;
  std::vector<int32_t> audio_codes;
  std::string text;
  int32_t text_token;
};

class Conversation {
 public:
  Frame step(const float *pcm, size_t samples) {
    moshi_frame frame;
    return checked(moshi_step(talk_.get(), pcm, samples, &frame), frame);
  }
  Frame step(const std::vector<float> &pcm) { return step(pcm.data(), pcm.size()); }
  Frame step_codes(const std::vector<int32_t> &codes) {
    moshi_frame frame;
    return checked(moshi_step_codes(talk_.get(), codes.data(), codes.size(), &frame), frame);
  }
  void reset() { check(moshi_reset(talk_.get(), nullptr)); }
  void reset(const Settings &settings) { check(moshi_reset(talk_.get(), &settings)); }
  void save(const std::string &path) const { check(moshi_save(talk_.get(), path.c_str())); }
  uint64_t nonfinite_samples() const { return moshi_nonfinite_samples(talk_.get()); }

  // hook(sampled token) -> the token to say instead, or nothing to keep it. What it throws comes out of step.
  using OnText = std::function<std::optional<int32_t>(int32_t)>;
  void on_text(OnText hook) {
    auto held = hook ? std::make_unique<Hook>(Hook{std::move(hook), nullptr}) : nullptr;
    check(moshi_set_on_text(talk_.get(), held ? &call : nullptr, held.get()));
    hook_ = std::move(held);
  }
  moshi_conversation *get() const { return talk_.get(); }

 private:
  friend class Model;
  struct Hook {
    OnText hook;
    std::exception_ptr thrown;
  };
  struct End {
    void operator()(moshi_conversation *talk) const { moshi_end(talk); }
  };
  Conversation(moshi_conversation *talk, Info info) : info_(info), talk_(talk) {}

  static int32_t call(int32_t token, void *context) {
    auto &held = *static_cast<Hook *>(context);
    try {
      return held.hook(token).value_or(MOSHI_KEEP);
    } catch (...) {
      held.thrown = std::current_exception();
      return MOSHI_FAIL;
    }
  }
  Frame checked(moshi_status status, const moshi_frame &frame) {
    if (hook_ && hook_->thrown) std::rethrow_exception(std::exchange(hook_->thrown, nullptr));
    check(status);
    Frame made{{}, {}, frame.text, frame.text_token};
    if (frame.pcm) made.pcm.assign(frame.pcm, frame.pcm + info_.frame_size);
    if (frame.audio_codes) made.audio_codes.assign(frame.audio_codes, frame.audio_codes + info_.codebooks);
    return made;
  }
  Info info_;
  std::unique_ptr<Hook> hook_;  // outlives the conversation, which may be in it
  std::unique_ptr<moshi_conversation, End> talk_;
};

class Model {
 public:
  Model(const std::string &bundle, const std::string &checkpoint, LoadOptions options = moshi_load_defaults()) {
    moshi_model *model = nullptr;
    check(moshi_load(bundle.c_str(), checkpoint.c_str(), &options, &model));
    model_.reset(model);
  }
  Info info() const {
    Info info;
    check(moshi_get_info(model_.get(), &info));
    return info;
  }
  Settings settings() const { return moshi_defaults(model_.get()); }
  Conversation begin() const { return begin(settings()); }
  Conversation begin(const Settings &settings) const {
    moshi_conversation *talk = nullptr;
    check(moshi_begin(model_.get(), &settings, &talk));
    return Conversation(talk, info());
  }
  Conversation restore(const std::string &path) const {
    moshi_conversation *talk = nullptr;
    check(moshi_restore(model_.get(), path.c_str(), &talk));
    return Conversation(talk, info());
  }

 private:
  struct Free {
    void operator()(moshi_model *model) const { moshi_free(model); }
  };
  std::unique_ptr<moshi_model, Free> model_;
};

}  // namespace moshi
