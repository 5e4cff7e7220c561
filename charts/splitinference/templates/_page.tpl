{{- define "splitinference.pageSelector" -}}
app.kubernetes.io/name: splitinference
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: page
{{- end }}

{{- define "splitinference.pageLabels" -}}
{{ include "splitinference.pageSelector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* What the page reads in each namespace. The planner needs profiles of models, which are ConfigMaps whose names depend on the resource. */}}
{{- define "splitinference.pageRules" -}}
- apiGroups: [splitinference.dev]
  resources: [splitinferences]
  verbs: [list, watch]
{{- if .Values.page.whatIf.enabled }}
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get]
{{- end }}
{{- end }}
