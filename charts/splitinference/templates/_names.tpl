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

{{- define "splitinference.lease" -}}
{{ include "splitinference.name" . }}-operator
{{- end }}

{{/*
What the operator does in each namespace that it serves: exactly the verbs that it uses, which a test compares with an audit log.
Objects of its own are found with `get` before they are changed, so that one of another owner is left alone. It deletes pods and Services
alone; all else goes with its SplitInference.
*/}}
{{- define "splitinference.namespacedRules" -}}
- apiGroups: [splitinference.dev]
  resources: [splitinferences]
  verbs: [list, watch]
- apiGroups: [splitinference.dev]
  resources: [splitinferences/status]
  verbs: [patch]
# To name a SplitInference as owner of what belongs to it, where the API server asks for this right.
- apiGroups: [splitinference.dev]
  resources: [splitinferences/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [get, create, patch]
# Certificates of gateways and segments. Written, never read.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create, patch]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch]
# A gateway may watch its own route and nothing else, so each has a Role of its own. The API server lets the operator give no right that
# it does not have, and policy.admission limits these Roles to that one rule.
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, create, patch]
{{- if .Values.networkPolicies }}
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create, patch]
{{- end }}
{{- end }}
