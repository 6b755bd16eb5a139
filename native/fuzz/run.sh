#!/bin/sh
# Fuzzes one target for some seconds on stable Rust: ./run.sh TARGET SECONDS [libFuzzer option…]
# New inputs are kept in corpus/TARGET, crashing ones in artifacts/TARGET. ASAN=1 adds AddressSanitizer.
set -eu
if [ $# -lt 2 ]; then
    echo "usage: $0 TARGET SECONDS [libFuzzer option...]; targets:" >&2
    sed -n 's/^name = "\(.*\)"/  \1/p' "$(dirname "$0")/Cargo.toml" | tail -n +2 >&2
    exit 2
fi
cd "$(dirname "$0")"
target=$1 seconds=$2
shift 2
host=$(rustc -vV | sed -n 's/^host: //p')
# What `cargo fuzz` would pass: coverage counters for libFuzzer. An explicit --target keeps them out of build scripts.
flags="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
flags="$flags -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
flags="$flags -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=1"
if [ "${ASAN:-0}" = 1 ]; then
    export RUSTC_BOOTSTRAP=1
    flags="$flags -Zsanitizer=address"
fi
RUSTFLAGS=$flags cargo build --release --target "$host" --bin "$target"
mkdir -p "corpus/$target" "artifacts/$target"
# What a target begins with, where random bytes would take long to get past the first checks.
seeds=
if [ -d "seeds/$target" ]; then seeds=seeds/$target; fi
exec "${CARGO_TARGET_DIR:-target}/$host/release/$target" -max_total_time="$seconds" \
    -artifact_prefix="artifacts/$target/" "$@" "corpus/$target" ${seeds:+"$seeds"}
