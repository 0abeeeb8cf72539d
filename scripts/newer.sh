# Sourced by peers.sh: what the next release has and the machine's own cannot install.
#
#   the newest QEMU                   unpacked into .peers/newest, run by its own C library
#   guest modules of our own          drivers that Debian's kernel leaves out, built from its source
#
# Both come from packages that are unpacked, not installed: nothing of them runs but what is named
# here. Neither is indispensable: without it, the tests that need it are skipped.

newest_packages=(qemu-system-x86)
# What it takes to build a module, besides the kernel's headers, which bring the compiler.
build_packages=(binutils make dash coreutils sed grep mawk bash findutils libc-bin tar)
# Below drivers/ in the kernel's source, without .c.
own_modules=(gpio/gpio-virtio i2c/busses/i2c-virtio)

# newer_list: downloads the lists of the next release and its backports, once.
newer_list() {
    [[ -e $work/newer/lists/partial ]] && return
    printf '%s\n' "$archive ${kernel_suite%-backports}" "$archive $kernel_suite" |
        private_list newer
}

# fetch_packages PACKAGE...: downloads them and all they need, as for an empty machine.
fetch_packages() {
    newer_list || return 1
    rm -f "$work/newer/cache/archives/"*.deb
    logged private_apt newer apt-get -q -y -o Dir::State::status=/dev/null --download-only \
        --no-install-recommends -t "$kernel_suite" install "$@"
}

# unpack_packages TREE: unpacks what was fetched, for a system whose /bin is /usr/bin.
unpack_packages() {
    local tree=$1 folder package
    mkdir -p "$tree/usr"
    for folder in bin sbin lib lib64; do
        mkdir -p "$tree/usr/$folder"
        ln -s "usr/$folder" "$tree/$folder"
    done
    for package in "$work/newer/cache/archives/"*.deb; do
        dpkg-deb --fsys-tarfile "$package" |
            tar -x -C "$tree" --keep-directory-symlink 2>>"$log" || return 1
    done
}

# ------------------------------------------------------------------ the newest QEMU

newest_ready() {
    [[ -x $peers/newest/qemu-system-x86_64 && -s $peers/newest/version ]]
}

install_newest() {
    local new="$work/newest"
    mkdir -p "$new"
    fetch_packages "${newest_packages[@]}" || return 1
    unpack_packages "$new/tree" || return 1
    # Documentation, translations and firmware of other machines: two thirds of it.
    rm -rf "$new/tree/usr/share/"{doc,man,locale,perl} "$new/tree/usr/share/qemu/edk2-"*
    # Its own C library, not the machine's, has to load it.
    cat >"$new/qemu-system-x86_64" <<'SH'
#!/bin/sh
tree=$(dirname "$(readlink -f "$0")")/tree
libraries=$(echo "$tree"/usr/lib/*-linux-gnu)
export QEMU_MODULE_DIR="$libraries/qemu"
exec "$tree"/lib64/ld-linux-*.so.2 --library-path "$libraries" "$tree/usr/bin/qemu-system-x86_64" \
    -L "$tree/usr/share/qemu" -L "$tree/usr/share/seabios" "$@"
SH
    chmod +x "$new/qemu-system-x86_64"
    "$new/qemu-system-x86_64" --version 2>>"$log" |
        sed -n 's/^QEMU emulator version \([0-9.]*\).*/\1/p' >"$new/version"
    [[ -s $new/version ]] || return 1
    rm -rf "$peers/newest"
    mv "$new" "$peers/newest"
}

# ------------------------------------------------------------------ guest modules

# build_modules RELEASE FOLDER: builds `own_modules` for the kernel RELEASE into FOLDER, in a tree of
# the next release: Debian's kernel wants the compiler that it was built with.
build_modules() {
    local release=$1 folder=$2 tree="$work/build" source name members=() objects=
    source=linux-source-$(cut -d. -f1,2 <<<"$release")
    (cd "$work/debs" && logged private_apt guest apt-get -q download "$source") || return 1
    fetch_packages "linux-headers-$release" "${build_packages[@]}" || return 1
    unpack_packages "$tree" || return 1
    ln -sf mawk "$tree/usr/bin/awk" # what its installation would do
    mkdir -p "$tree"/{dev,proc,tmp,module}
    mknod -m 666 "$tree/dev/null" c 1 3 || return 1
    for name in "${own_modules[@]}"; do
        members+=("$source/drivers/$name.c")
        objects+=" ${name##*/}.o"
    done
    # The last tar stops once it has them all, which breaks the pipe.
    dpkg-deb --fsys-tarfile "$work/debs/${source}_"*.deb 2>>"$log" |
        tar -xO "./usr/src/$source.tar.xz" 2>>"$log" |
        tar -xJ -C "$tree/module" --transform 's,.*/,,' --occurrence=1 "${members[@]}" \
            2>>"$log" || true
    echo "obj-m :=$objects" >"$tree/module/Makefile"
    # In a namespace of its own: the build wants /proc, and nothing is left mounted.
    logged unshare --mount --pid --fork --mount-proc="$tree/proc" \
        chroot "$tree" /usr/bin/env -i PATH=/usr/bin:/usr/sbin \
        make -s -C "/usr/src/linux-headers-$release" M=/module modules || return 1
    for name in "${own_modules[@]##*/}"; do
        logged strip --strip-debug -o "$folder/$name.ko" "$tree/module/$name.ko" || return 1
        echo "$name: $name"
    done
}
