{{/* The operator's settings: what it reads nodes by, its own variables, and what users add. The pod of `helm test` has the same. */}}
{{- define "splitinference.environment" -}}
{{ include "splitinference.readingEnvironment" . }}
- {name: SPLITINFERENCE_OPERATOR_CLASS, value: {{ .Values.operatorClass | quote }}}
- {name: SPLITINFERENCE_ALLOWED_HOST_PATHS, value: {{ toJson .Values.policy.allowedHostPaths | quote }}}
- {name: SPLITINFERENCE_ALLOWED_TOLERATIONS, value: {{ toJson .Values.policy.allowedTolerations | quote }}}
- {name: SPLITINFERENCE_PREEMPTION, value: {{ .Values.policy.preemption | quote }}}
- {name: SPLITINFERENCE_LEASE, value: {{ printf "%s/%s" .Release.Namespace (include "splitinference.lease" .) | quote }}}
- {name: SPLITINFERENCE_SEGMENT_IMAGE, value: {{ include "splitinference.image" (dict "image" .Values.images.segment "appVersion" .Chart.AppVersion "global" .Values.global) | quote }}}
- {name: SPLITINFERENCE_SEGMENT_LLAMA_CPP_IMAGE, value: {{ include "splitinference.image" (dict "image" .Values.images.segmentLlamaCpp "appVersion" .Chart.AppVersion "global" .Values.global) | quote }}}
- {name: SPLITINFERENCE_GATEWAY_IMAGE, value: {{ include "splitinference.image" (dict "image" .Values.images.gateway "appVersion" .Chart.AppVersion "global" .Values.global) | quote }}}
- {name: SPLITINFERENCE_START_FAILURE_SECONDS, value: {{ include "splitinference.text" .Values.startFailureSeconds | quote }}}
- {name: SPLITINFERENCE_IMAGE_PULL_POLICY, value: {{ .Values.images.pullPolicy | quote }}}
- {name: SPLITINFERENCE_IMAGE_PULL_SECRETS, value: {{ include "splitinference.pullSecrets" . | quote }}}
- {name: SPLITINFERENCE_RESYNC_SECONDS, value: {{ include "splitinference.text" .Values.resyncSeconds | quote }}}
- {name: SPLITINFERENCE_SEGMENT_CPU_LIMIT, value: {{ include "splitinference.text" .Values.segments.cpuLimit | quote }}}
- {name: SPLITINFERENCE_MODEL_CACHE_PATH, value: {{ .Values.segments.modelCachePath | quote }}}
- {name: SPLITINFERENCE_MODEL_CACHE_GIB, value: {{ .Values.segments.modelCacheGiB | quote }}}
- {name: SPLITINFERENCE_POD_USER, value: {{ with .Values.segments.user }}{{ include "splitinference.text" . | quote }}{{ else }}""{{ end }}}
- {name: SPLITINFERENCE_GATEWAY_CPU_REQUEST, value: {{ include "splitinference.text" .Values.gateway.cpuRequest | quote }}}
- {name: SPLITINFERENCE_GATEWAY_MEMORY, value: {{ include "splitinference.text" .Values.gateway.memory | quote }}}
- {name: SPLITINFERENCE_GATEWAY_RESOURCES, value: {{ .Values.gateway.resources | toJson | quote }}}
- {name: SPLITINFERENCE_SEGMENT_RESOURCES, value: {{ .Values.segments.resources | toJson | quote }}}
- {name: SPLITINFERENCE_JOB_RESOURCES, value: {{ .Values.jobs.resources | toJson | quote }}}
- {name: SPLITINFERENCE_POD_TEMPLATE, value: {{ .Values.podTemplate | toJson | quote }}}
- {name: SPLITINFERENCE_MESH_OPT_OUT, value: {{ join "," .Values.serviceMesh.optOut | quote }}}
- {name: SPLITINFERENCE_SAFE_TO_EVICT, value: {{ .Values.disruption.safeToEvict | toString | quote }}}
- {name: SPLITINFERENCE_DO_NOT_DISRUPT, value: {{ .Values.disruption.doNotDisrupt | quote }}}
- {name: SPLITINFERENCE_DISRUPTION_BUDGETS, value: {{ .Values.disruption.budgets | quote }}}
- name: SPLITINFERENCE_POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- {name: SPLITINFERENCE_MEASURE_NODES, value: {{ .Values.measureNodes.enabled | quote }}}
- {name: SPLITINFERENCE_MEASURE_WAIT_SECONDS, value: {{ include "splitinference.text" .Values.measureNodes.waitSeconds | quote }}}
- {name: SPLITINFERENCE_MEASUREMENTS_PER_HOUR, value: {{ include "splitinference.text" .Values.measureNodes.perHour | quote }}}
- {name: SPLITINFERENCE_MEASURE_AGAIN_DAYS, value: {{ include "splitinference.text" .Values.measureNodes.againDays | quote }}}
- {name: SPLITINFERENCE_MEASURING_TOLERATIONS, value: {{ .Values.measureNodes.tolerations | toJson | quote }}}
- {name: SPLITINFERENCE_MEASURING_PRIORITY_CLASS, value: {{ if .Values.measureNodes.enabled }}{{ .Values.measureNodes.priorityClassName | default (printf "%s-measure-%s" (include "splitinference.name" .) .Release.Namespace) | quote }}{{ else }}""{{ end }}}
- {name: SPLITINFERENCE_HUGGING_FACE_ENDPOINT, value: {{ .Values.huggingFace.endpoint | quote }}}
- {name: SPLITINFERENCE_CLUSTER_DOMAIN, value: {{ .Values.clusterDomain | quote }}}
- {name: SPLITINFERENCE_OTLP_ENDPOINT, value: {{ .Values.tracing.otlpEndpoint | quote }}}
- {name: SPLITINFERENCE_OTLP_SAMPLING_PERCENT, value: {{ include "splitinference.text" .Values.tracing.samplingPercent | quote }}}
- {name: SPLITINFERENCE_TRUST_DOMAIN, value: {{ .Values.identity.trustDomain | quote }}}
- {name: SPLITINFERENCE_ROOT_KEY_SECRET, value: {{ .Values.identity.rootKeySecret | quote }}}
- {name: SPLITINFERENCE_ISSUER_SECRET, value: {{ include "splitinference.issuerSecret" . | quote }}}
- {name: SPLITINFERENCE_NETWORK_POLICIES, value: {{ .Values.networkPolicies.enabled | quote }}}
- {name: SPLITINFERENCE_MONITORING_NAMESPACE_SELECTOR, value: {{ .Values.networkPolicies.monitoringNamespaceSelector | toJson | quote }}}
- {name: SPLITINFERENCE_LOG_FORMAT, value: {{ .Values.logging.format | quote }}}
{{- include "splitinference.addedEnvironment" . }}
{{- end }}

{{/* Settings by which nodes, links and models are read. The operator and the page have the same, so that both see the same. */}}
{{- define "splitinference.readingEnvironment" -}}
- {name: SPLITINFERENCE_SEGMENT_IMAGES_BY_CLASS, value: {{ include "splitinference.imagesByClass" . | quote }}}
- {name: SPLITINFERENCE_DEVICE_RULES, value: {{ .Values.devices.rules | toJson | quote }}}
- {name: SPLITINFERENCE_SEGMENT_DEVICE_HOST_MIB, value: {{ include "splitinference.text" .Values.devices.hostMiB | quote }}}
- {name: SPLITINFERENCE_OPERATOR_NAMESPACE, value: {{ .Release.Namespace | quote }}}
- {name: SPLITINFERENCE_NAMESPACES, value: {{ join "," .Values.watchNamespaces | quote }}}
- {name: SPLITINFERENCE_IMAGE_ARCHITECTURES, value: {{ join "," .Values.images.architectures | quote }}}
- {name: SPLITINFERENCE_PROMETHEUS_URL, value: {{ .Values.prometheus.url | quote }}}
{{- include "splitinference.prometheusEnv" . }}
- {name: SPLITINFERENCE_PROMETHEUS_SELECTOR, value: {{ .Values.prometheus.selector | quote }}}
- {name: SPLITINFERENCE_QUERY_SET, value: {{ .Values.prometheus.querySet | quote }}}
- {name: SPLITINFERENCE_METRICS_WINDOW_SECONDS, value: {{ include "splitinference.text" .Values.prometheus.windowSeconds | quote }}}
- {name: SPLITINFERENCE_METRICS_MAX_AGE_SECONDS, value: {{ include "splitinference.text" .Values.prometheus.maxAgeSeconds | quote }}}
- {name: SPLITINFERENCE_LINK_MAX_AGE_SECONDS, value: {{ include "splitinference.text" .Values.prometheus.linkMaxAgeSeconds | quote }}}
- {name: SPLITINFERENCE_QUERY_NODE_CPU_CORES, value: {{ .Values.prometheus.queries.nodeCpuCores | quote }}}
- {name: SPLITINFERENCE_QUERY_SEGMENT_CPU_CORES, value: {{ .Values.prometheus.queries.segmentCpuCores | quote }}}
- {name: SPLITINFERENCE_QUERY_NODE_MEMORY_AVAILABLE_BYTES, value: {{ .Values.prometheus.queries.nodeMemoryAvailableBytes | quote }}}
- {name: SPLITINFERENCE_QUERY_LINKS_MBPS, value: {{ include "splitinference.text" .Values.prometheus.queries.linksMbps | quote }}}
- {name: SPLITINFERENCE_QUERY_LINKS_RTT_MS, value: {{ include "splitinference.text" .Values.prometheus.queries.linksRttMs | quote }}}
- {name: SPLITINFERENCE_QUERY_NODE_GPU_USED, value: {{ .Values.prometheus.queries.nodeGpuUsed | quote }}}
- {name: SPLITINFERENCE_QUERY_NODE_GPU_USED_BY_OTHERS, value: {{ .Values.prometheus.queries.nodeGpuUsedByOthers | quote }}}
- {name: SPLITINFERENCE_QUERY_NODE_WATTS, value: {{ .Values.prometheus.queries.nodeWatts | quote }}}
- {name: SPLITINFERENCE_QUERY_NODE_CPU_WAITING, value: {{ .Values.prometheus.queries.nodeCpuWaiting | quote }}}
- {name: SPLITINFERENCE_QUERY_NODE_CPU_LIMITED, value: {{ .Values.prometheus.queries.nodeCpuLimited | quote }}}
- {name: SPLITINFERENCE_USE_PRESSURE, value: {{ .Values.prometheus.usePressure | quote }}}
- {name: SPLITINFERENCE_QUERY_SEGMENT_CPU_WAITING, value: {{ .Values.prometheus.queries.segmentCpuWaiting | quote }}}
- {name: SPLITINFERENCE_QUERY_SEGMENT_CPU_THROTTLED, value: {{ .Values.prometheus.queries.segmentCpuThrottled | quote }}}
- {name: SPLITINFERENCE_SEGMENT_CPU_REQUEST, value: {{ include "splitinference.text" .Values.segments.cpuRequest | quote }}}
- {name: SPLITINFERENCE_SEGMENT_RUNTIME_MIB, value: {{ include "splitinference.text" .Values.segments.runtimeMiB | quote }}}
- {name: SPLITINFERENCE_SEGMENT_LLAMA_CPP_RUNTIME_MIB, value: {{ include "splitinference.text" .Values.segments.llamaCppRuntimeMiB | quote }}}
{{- with .Values.disruption.leavingTaints }}
- {name: SPLITINFERENCE_LEAVING_TAINTS, value: {{ join "," . | quote }}}
{{- end }}
- {name: SPLITINFERENCE_CORE_GFLOPS, value: {{ include "splitinference.text" .Values.nodeDefaults.coreGflops | quote }}}
- {name: SPLITINFERENCE_CORE_MEMORY_BANDWIDTH_GBPS, value: {{ include "splitinference.text" .Values.nodeDefaults.coreMemoryBandwidthGBps | quote }}}
- {name: SPLITINFERENCE_LINK_MBPS, value: {{ include "splitinference.text" .Values.nodeDefaults.linkMbps | quote }}}
- {name: SPLITINFERENCE_LINK_RTT_MS, value: {{ include "splitinference.text" .Values.nodeDefaults.linkRttMs | quote }}}
- {name: SPLITINFERENCE_CATALOGUE_FOLDER, value: {{ ternary "/etc/splitinference/catalogue" "" (ne .Values.catalogue.configMap "") | quote }}}
- {name: SPLITINFERENCE_LOG_LEVEL, value: {{ .Values.logging.level | quote }}}
{{- end }}

{{/* What extraSettings and operator.env add. */}}
{{- define "splitinference.addedEnvironment" -}}
{{- range $key, $value := .Values.extraSettings }}
- {name: SPLITINFERENCE_{{ $key }}, value: {{ include "splitinference.text" $value | quote }}}
{{- end }}
{{- with .Values.operator.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The catalogue's files, for every container with the environment above. */}}
{{- define "splitinference.catalogueMounts" -}}
{{- if .Values.catalogue.configMap }}
- {name: catalogue, mountPath: /etc/splitinference/catalogue, readOnly: true}
{{- end }}
{{- end }}

{{- define "splitinference.catalogueVolumes" -}}
{{- with .Values.catalogue.configMap }}
- name: catalogue
  configMap: {name: {{ . | quote }}}
{{- end }}
{{- end }}
