# Another tenant: a shell that can burn CPU, and nothing else
ARG BASE
FROM ${BASE} AS packages
RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends busybox-static
FROM scratch
COPY --from=packages /bin/busybox /bin/busybox
COPY --from=packages /bin/busybox /bin/sh
USER 65534:65534
ENTRYPOINT ["/bin/sh"]
