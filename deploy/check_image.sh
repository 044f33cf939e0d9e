#!/bin/sh
# Builds the image's cpu target without a Docker engine and gets a guided reply from it: as root, with buildah
# and debootstrap of Debian. The root file system is mounted read-only, and the server is not root.
#   deploy/check_image.sh [ARGUMENTS OF buildah bud, such as --volume …]
# ROOT_FS: a Debian root file system with python3-venv, by default one that debootstrap makes.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
base=localhost/trimtab-base image=localhost/trimtab-check port=${PORT:-8765}

root_fs=${ROOT_FS:-}
if [ -z "$root_fs" ]; then
    root_fs=$work/root
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root_fs" >"$work/debootstrap.log"
fi
container=$(buildah from scratch)
buildah copy -q "$container" "$root_fs" / >/dev/null
buildah commit -q --rm "$container" "$base" >/dev/null
echo "check_image: building"
buildah bud --isolation chroot --build-arg BASE="$base" --target cpu -t "$image" "$@" "$here" >"$work/build.log" 2>&1 ||
    { tail -40 "$work/build.log"; exit 1; }

container=$(buildah from "$image")
root=$(buildah mount "$container")
finish() {
    [ -z "${server:-}" ] || kill "$server" 2>/dev/null || true
    buildah rm "$container" >/dev/null
    rm -rf "$work"
}
trap finish EXIT
unshare --mount --propagation private sh -c "
    mount --bind '$root' '$root' && mount -o remount,ro,bind '$root'
    mount -t tmpfs tmpfs '$root/tmp' && mount -t proc proc '$root/proc' && mount --bind /dev '$root/dev'
    exec chroot --userspec=1000:1000 '$root' env HOME=/home/trimtab PATH=/opt/trimtab/bin:/usr/bin:/bin \
        TRITON_CACHE_DIR=/tmp/triton TORCHINDUCTOR_CACHE_DIR=/tmp/inductor HF_HUB_OFFLINE=1 \
        trimtab serve --host 127.0.0.1 --port $port" >"$work/server.log" 2>&1 &
server=$!
python3 - "$port" <<'PY' || { cat "$work/server.log"; exit 1; }
import json, sys, time, urllib.error, urllib.request

url = f"http://127.0.0.1:{sys.argv[1]}"
deadline = time.monotonic() + 600
while True:
    try:
        urllib.request.urlopen(url + "/health", timeout=2)
        break
    except (urllib.error.URLError, OSError):
        if time.monotonic() > deadline:
            sys.exit("check_image: the server did not get ready")
        time.sleep(0.5)
body = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 24, "seed": 0,
        "guidance": {"strength": 1, "trace": True}}
request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(),
                                 {"Content-Type": "application/json"})
reply = json.load(urllib.request.urlopen(request, timeout=120))
choice = reply["choices"][0]
assert choice["guidance"]["kl"] > 0, choice
print("check_image:", reply["model"], "says", repr(choice["message"]["content"]), "at", choice["guidance"]["kl"], "nats")
PY
kill -TERM "$server"
code=0
wait "$server" || code=$?
server=
[ "$code" = 0 ] || { echo "check_image: the server left with $code"; exit 1; }
echo "check_image: passed"
