#include "conversation.hpp"

#include <cmath>

namespace moshi_mlx {

namespace {
int32_t token_of(mx::array& array) {
  array.eval();
  return array.item<int32_t>();
}
}  // namespace

Conversation::Conversation(std::shared_ptr<Model> model, const moshi_settings& settings)
    : model_(std::move(model)), settings_(settings) {
  voice_ = model_->voice(settings_);
  begin();
}

void Conversation::reset(const moshi_settings* settings) {
  check_idle();
  if (settings && !same_graphs(*settings, settings_)) voice_ = model_->voice(*settings);
  if (settings) settings_ = *settings;
  begin();
}

void Conversation::free_arrays() {
  small_.clear(), temporal_.clear(), encoder_.clear(), decoder_.clear(), key_.clear();
  voice_.reset();
}

void Conversation::check_idle() const {
  if (asking_) fail(MOSHI_BAD_ARGUMENT, "on_text: called a function of its own conversation");
}

void Conversation::begin() {
  broken_ = true;  // until all of it is there
  small_.clear(), temporal_.clear(), encoder_.clear(), decoder_.clear();  // freed before its successor is made
  auto& bundle = model_->bundle;
  auto state = model_->fresh();
  small_ = part(state, 0, bundle.small);
  temporal_ = part(state, bundle.small, bundle.temporal);
  encoder_ = part(state, bundle.small + bundle.temporal, bundle.encoder);
  decoder_ = part(state, bundle.small + bundle.temporal + bundle.encoder, bundle.decoder);
  uint32_t key[2] = {uint32_t(settings_.seed >> 32), uint32_t(settings_.seed)};
  key_ = {mx::array(key, {1, 2})};
  utf8_ = {}, pending_.clear();
  capacity_ = bundle.capacities[0];
  if (model_->one_ring()) grow_to_last();
  prime();
  broken_ = false;
}

// Where attention skips what it does not see, a small ring saves nothing, and growing would cost a stutter.
void Conversation::grow_to_last() {
  auto& sizes = model_->bundle.capacities;
  for (size_t i = 0; i + 1 < sizes.size(); i++) temporal_ = model_->grow(sizes[i], temporal_);
  capacity_ = sizes.back();
}

// Position 0, before the user's first frame: it sees codes that nobody looks at.
void Conversation::prime() {
  auto& bundle = model_->bundle;
  std::vector<int> none(size_t(bundle.number("user_codebooks")));
  Arrays x{mx::array(none.data(), {1, int(none.size())})};
  append(x, small_), append(x, temporal_);
  auto heard = model_->think(capacity_, x);
  small_ = part(heard, 2, bundle.small), temporal_ = part(heard, 2 + bundle.small, bundle.temporal);
  Arrays to_draw{heard[0], key_[0]};
  append(to_draw, voice_->sampler.text.numbers());
  auto drawn = model_->draw(*voice_, to_draw);
  key_ = {drawn[1]};
  Arrays to_speak{drawn[0], heard[1]};
  append(to_speak, small_), append(to_speak, part(drawn, 2, drawn.size() - 2)), append(to_speak, voice_->sampler.audio.numbers());
  auto spoken = model_->depth(*voice_, to_speak);
  small_ = part(spoken, 2, bundle.small);
  Arrays all{drawn[0], key_[0]};
  append(all, small_), append(all, temporal_), append(all, encoder_), append(all, decoder_);
  mx::eval(all);
  positions_ = 1;
  pending_ = utf8_(bundle.pieces.at(size_t(token_of(drawn[0]))));
}

moshi_frame Conversation::step(const float* pcm, size_t samples) {
  check_idle();
  size_t expected = size_t(model_->bundle.number("frame_size"));
  if (!pcm || samples != expected) fail(MOSHI_BAD_ARGUMENT, "pcm: got ", pcm ? samples : 0, " samples, expected ", expected);
  std::vector<float> finite(pcm, pcm + samples);
  uint64_t silenced = 0;
  for (auto& sample : finite)
    if (!std::isfinite(sample)) sample = 0, silenced++;
  nonfinite_ += silenced;
  return advance(mx::array(finite.data(), {1, int(samples)}), true);
}

moshi_frame Conversation::step_codes(const int32_t* codes, size_t count) {
  check_idle();
  size_t expected = size_t(model_->bundle.number("user_codebooks"));
  int most = model_->bundle.number(model_->bundle.has("user_tokens") ? "user_tokens" : "audio_tokens") - 1;
  if (!codes || count != expected) fail(MOSHI_BAD_ARGUMENT, "codes: got ", codes ? count : 0, ", expected ", expected);
  for (size_t i = 0; i < count; i++)
    if (codes[i] < -1 || codes[i] > most) fail(MOSHI_BAD_ARGUMENT, "codes: got ", codes[i], ", expected -1 to ", most);
  return advance(mx::array(codes, {1, int(count)}), false);
}

void Conversation::grow() {
  auto& sizes = model_->bundle.capacities;
  if (positions_ != capacity_ || capacity_ == sizes.back()) return;
  temporal_ = model_->grow(capacity_, temporal_);
  for (size_t i = 0; i + 1 < sizes.size(); i++)
    if (sizes[i] == capacity_) {
      capacity_ = sizes[i + 1];
      return;
    }
}

moshi_frame Conversation::advance(const mx::array& given, bool sound) {
  if (broken_) fail(MOSHI_FAILED, "the conversation is lost after an earlier failure: reset it");
  broken_ = true;
  grow();
  auto& bundle = model_->bundle;
  Arrays x{given};
  append(x, small_), append(x, temporal_);
  if (sound) append(x, encoder_), encoder_.clear();
  small_.clear(), temporal_.clear();  // so that the caches are written where they are
  auto heard = (sound ? model_->hear(capacity_) : model_->hear_codes(capacity_))(x);
  x.clear();
  small_ = part(heard, 2, bundle.small), temporal_ = part(heard, 2 + bundle.small, bundle.temporal);
  if (sound) encoder_ = part(heard, 2 + bundle.small + bundle.temporal, bundle.encoder);
  auto drawn = choose_text(heard[0]);
  int32_t chosen = MOSHI_KEEP;
  std::string why = "failed";
  if (hook_) {
    Arrays all = heard;
    append(all, drawn);
    mx::eval(all);
    chosen = ask_hook(drawn[0].item<int32_t>(), why);
    if (chosen >= 0 && size_t(chosen) < bundle.pieces.size()) drawn[0] = mx::array(&chosen, {1});
  }
  Arrays y{drawn[0], heard[1]};
  append(y, small_), append(y, part(drawn, 2, drawn.size() - 2)), append(y, voice_->sampler.audio.numbers()), append(y, decoder_);
  heard.clear(), decoder_.clear(), small_.clear();
  auto spoken = voice_->speak(y);
  y.clear();
  key_ = {drawn[1]};
  small_ = part(spoken, 2, bundle.small);
  decoder_ = part(spoken, 3 + bundle.small, bundle.decoder);
  Arrays all{drawn[0], key_[0]};
  append(all, spoken), append(all, temporal_), append(all, encoder_);
  mx::eval(all);
  positions_++;
  broken_ = false;
  auto said = frame(spoken, drawn[0].item<int32_t>());
  if (chosen == MOSHI_FAIL) fail(MOSHI_FAILED, "on_text: ", why);
  if (chosen < MOSHI_FAIL || chosen >= int32_t(bundle.pieces.size()))
    fail(MOSHI_BAD_ARGUMENT, "on_text: returned ", chosen, ", expected a text token from 0 to ", bundle.pieces.size() - 1, ", or MOSHI_KEEP");
  return said;
}

Arrays Conversation::choose_text(const mx::array& logits) {
  Arrays x{logits, key_[0]};
  append(x, voice_->sampler.text.numbers());
  return voice_->draw(x);
}

// A hook in C++ may throw in spite of what moshi.h says; the conversation goes on as after MOSHI_FAIL.
int32_t Conversation::ask_hook(int32_t token, std::string& why) {
  asking_ = true;
  int32_t chosen = MOSHI_FAIL;
  try {
    chosen = hook_(token, context_);
  } catch (const std::exception& error) {
    why = error.what();
  } catch (...) {
  }
  asking_ = false;
  return chosen;
}

moshi_frame Conversation::frame(const Arrays& spoken, int32_t token) {
  auto& bundle = model_->bundle;
  auto& sound = spoken[2 + bundle.small];
  size_t samples = size_t(bundle.number("frame_size")), codebooks = size_t(bundle.number("codebooks"));
  if (sound.size() != samples || spoken[0].size() != codebooks || token < 0 || size_t(token) >= bundle.pieces.size())
    fail(MOSHI_BAD_BUNDLE, "a frame has another size than the manifest says");
  text_ = pending_ + utf8_(bundle.pieces[size_t(token)]);
  pending_.clear();
  mx::array ready = spoken[1];
  if (!ready.item<bool>()) return {nullptr, nullptr, text_.c_str(), token};
  pcm_.assign(sound.data<float>(), sound.data<float>() + samples);
  codes_.assign(spoken[0].data<int32_t>(), spoken[0].data<int32_t>() + codebooks);
  return {pcm_.data(), codes_.data(), text_.c_str(), token};
}

}  // namespace moshi_mlx
