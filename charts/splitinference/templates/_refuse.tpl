{{/* Values that contradict each other are refused, each with a sentence. values.schema.json refuses what is wrong by itself. */}}
{{- define "splitinference.refuse" -}}
{{- with .root.Values }}
{{- if not .prometheus.url }}
{{- with .prometheus.auth }}
{{- if or .tokenSecret.name .serviceAccountToken.enabled .basicAuthSecret .headersSecret .caSecret.name .clientSecret }}
{{- fail "prometheus.auth has credentials, but prometheus.url is empty: set the address that they are for" }}
{{- end }}
{{- end }}
{{- else if and (hasPrefix "http://" .prometheus.url) (or .prometheus.auth.caSecret.name .prometheus.auth.clientSecret) }}
{{- fail (printf "prometheus.auth has certificates, but prometheus.url (%s) is plain HTTP: use https://" .prometheus.url) }}
{{- end }}
{{- if and (eq (toString .disruption.safeToEvict) "true") .disruption.doNotDisrupt }}
{{- fail "disruption.safeToEvict lets one autoscaler evict the pods that disruption.doNotDisrupt keeps from another: set one of them" }}
{{- end }}
{{- if and .identity.certManager.issuerRef.name .identity.issuerSecret }}
{{- fail (printf "identity.certManager.issuerRef (%s) has cert-manager make the issuer's Secret, but identity.issuerSecret (%s) names another one: set one of them" .identity.certManager.issuerRef.name .identity.issuerSecret) }}
{{- end }}
{{- if and .identity.issuerSecret (eq .identity.issuerSecret .identity.rootKeySecret) }}
{{- fail (printf "identity.issuerSecret and identity.rootKeySecret are both %s: they are different Secrets" .identity.issuerSecret) }}
{{- end }}
{{- if and .serviceAccount.name .serviceAccount.annotations }}
{{- fail (printf "serviceAccount.annotations is for a ServiceAccount that the chart creates, but serviceAccount.name (%s) names one that exists: annotate that one yourself" .serviceAccount.name) }}
{{- end }}
{{- if and .probe.enabled (gt (int64 .probe.budgetBytesPerMinute) 0) (gt (int64 .probe.burstBytes) (int64 .probe.budgetBytesPerMinute)) }}
{{- fail (printf "probe.burstBytes (%d) must be at most probe.budgetBytesPerMinute (%d)" (int64 .probe.burstBytes) (int64 .probe.budgetBytesPerMinute)) }}
{{- end }}
{{- if .watchNamespaces }}
{{- $namespaces := .watchNamespaces }}
{{- range .tokenReview.gateways }}
{{- if not (has .namespace $namespaces) }}
{{- fail (printf "tokenReview.gateways names the namespace %s, which watchNamespaces (%s) does not have" .namespace (join ", " $namespaces)) }}
{{- end }}
{{- end }}
{{- end }}
{{- include "splitinference.ordered" (list "segments.cpuRequest" .segments.cpuRequest "segments.cpuLimit" .segments.cpuLimit) }}
{{- $gateway := ((.gateway.resources).limits) | default dict }}
{{- include "splitinference.ordered" (list "gateway.cpuRequest" .gateway.cpuRequest "gateway.resources.limits.cpu" (get $gateway "cpu")) }}
{{- include "splitinference.ordered" (list "gateway.memory" .gateway.memory "gateway.resources.limits.memory" (get $gateway "memory")) }}
{{- range $who, $part := dict "operator" .operator "probe" .probe }}
{{- range $what, $requested := (($part.resources).requests) | default dict }}
{{- $limits := (($part.resources).limits) | default dict }}
{{- include "splitinference.ordered" (list (printf "%s.resources.requests.%s" $who $what) $requested (printf "%s.resources.limits.%s" $who $what) (get $limits $what)) }}
{{- end }}
{{- end }}
{{- end }}
{{- $seen := dict }}
{{- range $entry := fromYamlArray .environment }}
{{- if hasKey $seen $entry.name }}
{{- fail (printf "the variable %s is given twice: extraSettings and operator.env must not repeat what another value of the chart sets" $entry.name) }}
{{- end }}
{{- $_ := set $seen $entry.name true }}
{{- end }}
{{- end }}

{{/* Fails where a request is above its limit. Takes the name and the value of each; a limit that is empty is none. */}}
{{- define "splitinference.ordered" -}}
{{- $request := index . 1 }}
{{- $limit := index . 3 }}
{{- if and (not (empty $request)) (not (empty $limit)) }}
{{- if gt (include "splitinference.thousandths" $request | float64) (include "splitinference.thousandths" $limit | float64) }}
{{- fail (printf "%s (%s) must be at most %s (%s)" (index . 0) (include "splitinference.text" $request) (index . 2) (include "splitinference.text" $limit)) }}
{{- end }}
{{- end }}
{{- end }}

{{/* A quantity of Kubernetes, times 1000. One in exponent form, or wrongly written, gives 0, so that nothing is refused for it. */}}
{{- define "splitinference.thousandths" -}}
{{- $text := include "splitinference.text" . }}
{{- $number := regexFind "^[0-9]+([.][0-9]+)?" $text | default "0" }}
{{- $scale := dict "m" 1.0 "" 1e3 "k" 1e6 "M" 1e9 "G" 1e12 "T" 1e15 "Ki" 1024e3 "Mi" 1048576e3 "Gi" 1073741824e3 "Ti" 1099511627776e3 }}
{{- mulf ($number | float64) (get $scale (trimPrefix $number $text) | default 0.0) }}
{{- end }}
