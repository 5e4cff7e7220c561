# the node image, before the component images go into it; the context holds kubeadm, kubelet, kubectl and, where needed, runtime
ARG BASE
FROM ${BASE}
ARG VERSION
COPY kubeadm kubelet kubectl /usr/bin/
COPY storage.yaml /kind/manifests/default-storage.yaml
RUN ln -sf /usr/bin/containerd /usr/local/bin/containerd \
 && echo ${VERSION} > /kind/version \
 && ctr oci spec \
    | jq '.hooks.createContainer += [{"path": "/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)' > /etc/containerd/cri-base.json
COPY runtime* /kind/
# a machine that lacks capabilities can neither raise limits nor lower OOM scores below its own
RUN if [ -e /kind/runtime ]; then \
      mv /usr/sbin/runc /usr/sbin/runc.real && mv /kind/runtime /usr/sbin/runc && chmod 755 /usr/sbin/runc \
      && sed -i 's/restrict_oom_score_adj = false/restrict_oom_score_adj = true/' /etc/containerd/config.toml \
      && sed -i -E '/^(Limit[A-Z]+|TasksMax|OOMScoreAdjust)=/d' /etc/systemd/system/containerd.service; \
    fi
ENV container=docker
STOPSIGNAL SIGRTMIN+3
ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]
