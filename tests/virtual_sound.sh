#!/usr/bin/env bash
# A sound card where there is none, for the tests marked "device": PulseAudio with two null sinks.
# What a program plays is heard on speaker.monitor; what is played into the sink "microphone" is what a
# program records. Both are mono, float and at 24 kHz, so that what Moshi says arrives sample for sample. Safe to call
# again; exits nonzero, with a line that says why, when it cannot be had.
# Debian: apt-get install pulseaudio pulseaudio-utils libasound2-plugins libportaudio2
set -euo pipefail

fail() {
    echo "virtual_sound.sh: $1" >&2
    exit 1
}

add_sink() {
    pactl list short sinks | cut -f2 | grep -qx "$1" && return
    pactl load-module module-null-sink sink_name="$1" rate=24000 channels=1 format=float32le >/dev/null || fail "no null sink '$1'"
}

for program in pulseaudio pactl paplay parec; do
    command -v "$program" >/dev/null || fail "$program is missing; install pulseaudio and pulseaudio-utils"
done
# PulseAudio as root warns on stderr and runs; what it says matters only when it does not start.
pulseaudio --check || said=$(pulseaudio --daemonize --exit-idle-time=-1 2>&1) || fail "pulseaudio: $said"
pactl info >/dev/null || fail "PulseAudio runs but does not answer"
add_sink speaker
add_sink microphone
pactl set-default-sink speaker || fail "cannot make 'speaker' the default sink"
pactl set-default-source microphone.monitor || fail "cannot make 'microphone.monitor' the default source"
