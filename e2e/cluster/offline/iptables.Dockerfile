# what kube-proxy calls: iptables and its libraries, and nothing else
ARG BASE
FROM ${BASE} AS full
RUN mkdir -p /out/usr/sbin /out/usr/lib /out/run \
 && ln -s usr/sbin /out/sbin && ln -s usr/lib /out/lib && ln -s usr/lib64 /out/lib64 && ln -s sbin /out/usr/bin \
 && cp -a /usr/sbin/xtables-nft-multi /usr/sbin/xtables-legacy-multi /out/usr/sbin/ \
 && for name in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do ln -s xtables-nft-multi /out/usr/sbin/$name; done \
 && cp -a /usr/bin/kmod /usr/sbin/conntrack /out/usr/sbin/ && ln -s kmod /out/usr/sbin/modprobe \
 && plugins=$(dirname "$(find /usr/lib -name libxt_comment.so)") \
 && { echo "$plugins"; ldd /usr/sbin/xtables-nft-multi /usr/sbin/xtables-legacy-multi /usr/bin/kmod /usr/sbin/conntrack "$plugins"/*.so | grep -oE '/[^ ]+' | sed 's/:$//' | sort -u; } \
    | while read -r path; do cp -rL --parents "$(dirname "$(realpath "$path")")/$(basename "$path")" /out/ 2>/dev/null || cp -rL --parents "$path" /out/; done \
 && mkdir -p /out/usr/lib64 && cp -L /lib64/ld-linux* /out/usr/lib64/ 2>/dev/null || true
FROM scratch
COPY --from=full /out/ /
