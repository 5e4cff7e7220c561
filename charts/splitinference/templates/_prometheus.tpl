{{/* Credentials for Prometheus, mounted as files: the operator needs no right to read Secrets for them. */}}
{{- define "splitinference.prometheusFolder" -}}/var/run/splitinference/prometheus{{- end }}

{{- define "splitinference.prometheusEnv" -}}
{{- $folder := include "splitinference.prometheusFolder" . }}
{{- with .Values.prometheus.auth }}
{{- if or .tokenSecret.name .serviceAccountToken.enabled }}
- {name: SPLITINFERENCE_PROMETHEUS_TOKEN_FILE, value: {{ $folder }}/token/token}
{{- end }}
{{- if .basicAuthSecret }}
- {name: SPLITINFERENCE_PROMETHEUS_BASIC_AUTH_FOLDER, value: {{ $folder }}/basic-auth}
{{- end }}
{{- if .headersSecret }}
- {name: SPLITINFERENCE_PROMETHEUS_HEADERS_FOLDER, value: {{ $folder }}/headers}
{{- end }}
{{- if .caSecret.name }}
- {name: SPLITINFERENCE_PROMETHEUS_CA_FILE, value: {{ $folder }}/ca/ca.crt}
{{- end }}
{{- if .clientSecret }}
- {name: SPLITINFERENCE_PROMETHEUS_CLIENT_FOLDER, value: {{ $folder }}/client}
{{- end }}
{{- end }}
{{- end }}

{{- define "splitinference.prometheusMounts" -}}
{{- $folder := include "splitinference.prometheusFolder" . }}
{{- with .Values.prometheus.auth }}
{{- if or .tokenSecret.name .serviceAccountToken.enabled }}
- {name: prometheus-token, mountPath: {{ $folder }}/token, readOnly: true}
{{- end }}
{{- if .basicAuthSecret }}
- {name: prometheus-basic-auth, mountPath: {{ $folder }}/basic-auth, readOnly: true}
{{- end }}
{{- if .headersSecret }}
- {name: prometheus-headers, mountPath: {{ $folder }}/headers, readOnly: true}
{{- end }}
{{- if .caSecret.name }}
- {name: prometheus-ca, mountPath: {{ $folder }}/ca, readOnly: true}
{{- end }}
{{- if .clientSecret }}
- {name: prometheus-client, mountPath: {{ $folder }}/client, readOnly: true}
{{- end }}
{{- end }}
{{- end }}

{{- define "splitinference.prometheusVolumes" -}}
{{- with .Values.prometheus.auth }}
{{- if and .tokenSecret.name .serviceAccountToken.enabled }}
{{- fail "prometheus.auth: give tokenSecret or serviceAccountToken, not both" }}
{{- end }}
{{- if and .basicAuthSecret (or .tokenSecret.name .serviceAccountToken.enabled) }}
{{- fail "prometheus.auth: give a token or basicAuthSecret, not both" }}
{{- end }}
{{- if .tokenSecret.name }}
- name: prometheus-token
  secret:
    secretName: {{ .tokenSecret.name }}
    items: [{key: {{ .tokenSecret.key }}, path: token}]
{{- else if .serviceAccountToken.enabled }}
- name: prometheus-token
  projected:
    sources:
      - serviceAccountToken:
          path: token
          expirationSeconds: 3600
          {{- with .serviceAccountToken.audience }}
          audience: {{ . | quote }}
          {{- end }}
{{- end }}
{{- if .basicAuthSecret }}
- name: prometheus-basic-auth
  secret: {secretName: {{ .basicAuthSecret }}}
{{- end }}
{{- if .headersSecret }}
- name: prometheus-headers
  secret: {secretName: {{ .headersSecret }}}
{{- end }}
{{- if .caSecret.name }}
- name: prometheus-ca
  secret:
    secretName: {{ .caSecret.name }}
    items: [{key: {{ .caSecret.key }}, path: ca.crt}]
{{- end }}
{{- if .clientSecret }}
- name: prometheus-client
  secret: {secretName: {{ .clientSecret }}}
{{- end }}
{{- end }}
{{- end }}
