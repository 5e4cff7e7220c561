{{- define "splitinference.name" -}}
{{- if contains .Chart.Name .Release.Name -}}{{ .Release.Name | trunc 46 | trimSuffix "-" }}{{- else -}}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 46 | trimSuffix "-" }}{{- end -}}
{{- end }}

{{- define "splitinference.serviceAccount" -}}
{{ default (printf "%s-operator" (include "splitinference.name" .)) .Values.serviceAccount.name }}
{{- end }}

{{/* The Secret with the CA certificate that certifies those of resources; empty where the operator's root key is all there is. */}}
{{- define "splitinference.issuerSecret" -}}
{{- with .Values.identity -}}
{{- if .certManager.issuerRef.name -}}{{ .rootKeySecret | trunc 240 }}-issuer{{- else -}}{{ .issuerSecret }}{{- end -}}
{{- end -}}
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
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
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
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* A digest names the content, so it goes before a tag. global.imageRegistry is what umbrella charts give all of their charts. */}}
{{- define "splitinference.image" -}}
{{- $global := .global | default dict -}}
{{- with $global.imageRegistry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- .image.repository -}}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ .image.tag | default .appVersion }}{{ end -}}
{{- end }}

{{/* Images of segments by class of device, as JSON. */}}
{{- define "splitinference.imagesByClass" -}}
{{- $found := dict -}}
{{- range $class, $image := .Values.images.segment.byClass -}}
{{- $name := include "splitinference.image" (dict "image" $image "appVersion" $.Chart.AppVersion "global" $.Values.global) -}}
{{- $one := dict "image" $name -}}
{{- with $image.runtimeClassName }}{{ $_ := set $one "runtimeClassName" . }}{{ end -}}
{{- $_ := set $found $class $one -}}
{{- end -}}
{{- toJson $found -}}
{{- end }}

{{/* Names of pull secrets, with commas: those of the chart and of global.imagePullSecrets, which may be names or {name: …}. */}}
{{- define "splitinference.pullSecrets" -}}
{{- $names := list -}}
{{- range .Values.images.pullSecrets }}{{ $names = append $names . }}{{ end -}}
{{- range ((.Values.global | default dict).imagePullSecrets | default list) }}
{{- if kindIs "map" . }}{{ $names = append $names .name }}{{ else }}{{ $names = append $names . }}{{ end -}}
{{- end -}}
{{- $names | uniq | join "," -}}
{{- end }}

{{/* A number as it was written: templates have 1000000 as 1e+06, which is no whole number to whoever reads it. */}}
{{- define "splitinference.text" -}}
{{- if and (kindIs "float64" .) (eq (. | int64 | float64) .) -}}{{ . | int64 }}{{- else -}}{{ . }}{{- end -}}
{{- end }}

{{/* Labels, annotations and node selectors: their values are strings, also where values.yaml has a number or a boolean. */}}
{{- define "splitinference.words" -}}
{{- range $key, $value := . }}
{{ $key | quote }}: {{ include "splitinference.text" $value | quote }}
{{- end }}
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
  verbs: [get, create, delete]
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
  verbs: [get, list, watch, create, patch]
# Certificates of gateways and segments. They are written and never read: even the answer to a write has metadata alone.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create, patch]
- apiGroups: [""]
  resources: [events]
  # listed to say why a pod does not start: volumes and sandboxes say so in events alone
  verbs: [create, list]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch]
# A gateway may watch its own route and nothing else, so each has a Role of its own. The API server lets the operator give no right that
# it does not have, and policy.admission limits these Roles to that one rule.
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, watch, create, patch]
{{- if .Values.networkPolicies.enabled }}
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
{{- if .Values.disruption.budgets }}
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
{{- end }}
