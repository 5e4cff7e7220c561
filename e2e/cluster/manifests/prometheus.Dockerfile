# Prometheus from Debian's package: the server and its C library
ARG BASE
FROM ${BASE} AS packages
RUN apt-get update -qq && cd /tmp && apt-get download -qq prometheus && dpkg -x prometheus_*.deb /unpacked
RUN mkdir -p /out/tmp && cp --parents /etc/ssl/certs/ca-certificates.crt /out/ && chmod 1777 /out/tmp \
 && ldd /unpacked/usr/bin/prometheus | grep -oE '/[^ ]+' | sort -u | xargs -I{} cp -L --parents {} /out/ \
 && mkdir -p /out/usr/bin && cp /unpacked/usr/bin/prometheus /out/usr/bin/
FROM scratch
COPY --from=packages /out/ /
USER 65534:65534
EXPOSE 9090
ENTRYPOINT ["/usr/bin/prometheus"]
