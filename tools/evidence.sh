#!/bin/bash
# Trains and compares all models behind one entry of docs/results/summary.json:
#
#     tools/evidence.sh SET SEED        # SET: synthetic, bccd or cards
#
# Trains a plain detector, a detector with an energy head, and then the heads alone for longer. Runs tools/compare.py on the
# validation and test splits and copies comparison.json to docs/results/, overwriting two files there. Takes 20 to 60 minutes
# on one core. Run it again to resume. Prepare the data first:
#
#     python -m iounet.data.synthetic --output runs/synthetic
#     python -m iounet.data.voc BCCD_Dataset/BCCD --output runs/bccd/data
#     python -m iounet.data.voc cards --output runs/cards/data --val-share 0.2
set -eu
cd "$(dirname "$0")/.."
set=$1 seed=$2
export OMP_NUM_THREADS=1 PYTHONPATH=$PWD  # results depend on the number of threads through floating-point sums

train() {  # RUN CONFIG [KEY VALUE ...]
    run=runs/$1 config=configs/$2.yaml
    shift 2
    # --resume would evaluate a finished run again.
    [ -f "$run/evaluation.json" ] || python tools/train.py --config-file "$config" --resume OUTPUT_DIR "$run" SEED "$seed" "$@"
}

compare() {  # SPLIT [KEY VALUE ...]
    split=$1
    shift
    python tools/compare.py --config-file "configs/${set}_energy_heads.yaml" --weights "runs/${set}_energy_heads$seed/model_final.pth" \
        --baseline "configs/$set.yaml" "runs/${set}_plain$seed/model_final.pth" --output "runs/${set}_energy_heads$seed/$split" "$@"
}

train "${set}_plain$seed" "$set" MODEL.IOU_HEAD.LOSS_WEIGHT 0
train "${set}_energy$seed" "${set}_energy"
train "${set}_energy_heads$seed" "${set}_energy_heads" MODEL.WEIGHTS "runs/${set}_energy$seed/model_final.pth"
compare val
if [ "$set" = synthetic ]; then
    compare test DATA.VAL_ANNOTATIONS runs/synthetic/annotations/test.json DATA.VAL_IMAGES runs/synthetic/test
else
    compare test DATA.VAL_ANNOTATIONS "runs/$set/data/test.json"
fi
cp "runs/${set}_energy_heads$seed/val/comparison.json" "docs/results/${set}_energy_val_seed$seed.json"
cp "runs/${set}_energy_heads$seed/test/comparison.json" "docs/results/${set}_energy_seed$seed.json"
