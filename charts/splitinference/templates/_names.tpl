{{- define "splitinference.name" -}}
{{- if contains .Chart.Name .Release.Name -}}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{- else -}}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{- end -}}
{{- end }}

{{- define "splitinference.serviceAccount" -}}
{{ default (printf "%s-operator" (include "splitinference.name" .)) .Values.serviceAccount.name }}
{{- end }}

{{- define "splitinference.selector" -}}
app.kubernetes.io/name: splitinference
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "splitinference.labels" -}}
{{ include "splitinference.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "splitinference.probeSelector" -}}
app.kubernetes.io/name: splitinference
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: probe
{{- end }}

{{- define "splitinference.probeLabels" -}}
{{ include "splitinference.probeSelector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "splitinference.image" -}}
{{ .image.repository }}:{{ .image.tag | default .appVersion }}
{{- end }}

{{/* What the operator does in each namespace that it serves. */}}
{{- define "splitinference.namespacedRules" -}}
- apiGroups: [splitinference.dev]
  resources: [splitinferences]
  verbs: [get, list, watch]
- apiGroups: [splitinference.dev]
  resources: [splitinferences/status]
  verbs: [patch]
# To name a SplitInference as owner of what belongs to it.
- apiGroups: [splitinference.dev]
  resources: [splitinferences/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [pods, services, configmaps, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
{{- if .Values.huggingFace.tokenSecrets }}
# Only the one that a spec names is read, for the Hugging Face hub's token.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
{{- end }}
# Certificates of gateways and segments. They are written and never read: even the answer to a write has metadata alone.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create, patch]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, create, patch, delete]
{{- if .Values.networkPolicies.enabled }}
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, create, patch, delete]
{{- end }}
{{- end }}
