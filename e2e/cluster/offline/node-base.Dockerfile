# kind's node base from Debian's packages; the context is images/base/files of kind's Go module
ARG BASE
FROM ${BASE}
# packages before kind's files: dpkg would stop and ask about each configuration file that is already there
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      systemd conntrack iptables nftables iproute2 ethtool util-linux mount kmod libseccomp2 bash ca-certificates curl jq procps \
      containerd runc containernetworking-plugins \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb
COPY usr/local/bin/ /usr/local/bin/
COPY kind/ /kind/
COPY etc/ /etc/
# kind starts the services that it wants and no other
RUN chmod 755 /usr/local/bin/* /kind /kind/bin /kind/bin/* \
 && find /lib/systemd/system/sysinit.target.wants/ -name systemd-tmpfiles-setup.service -delete \
 && rm -f /lib/systemd/system/multi-user.target.wants/* /etc/systemd/system/*.wants/* /lib/systemd/system/local-fs.target.wants/* \
      /lib/systemd/system/sockets.target.wants/*udev* /lib/systemd/system/sockets.target.wants/*initctl* /lib/systemd/system/basic.target.wants/* \
 && echo ReadKMsg=no >> /etc/systemd/journald.conf \
 && { test -e /sbin/init || ln -s /usr/lib/systemd/systemd /sbin/init; } \
 && systemctl enable kubelet.service containerd.service undo-mount-hacks.service \
 && systemctl mask systemd-binfmt.service \
 && mkdir -p /etc/kubernetes/manifests /opt/cni /kind/manifests \
 && ln -s /usr/lib/cni /opt/cni/bin
