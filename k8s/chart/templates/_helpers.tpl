{{- define "spanprof.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "spanprof.selector" -}}
app.kubernetes.io/name: spanprof
{{- if ne .Release.Name "spanprof" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- end -}}

{{- define "spanprof.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{ include "spanprof.selector" . }}
{{- end -}}

{{- define "spanprof.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* As a variable has it: a list is a line for each, or with commas where that is the option's way; a list of
maps is JSON, which is YAML too. */ -}}
{{- define "spanprof.value" -}}
{{- $value := .value -}}
{{- if and (kindIs "slice" $value) (eq .key "span_attribute") -}}
{{ join "," $value }}
{{- else if and (kindIs "slice" $value) (not (has .key (list "endpoints" "relabel_configs"))) -}}
{{ join "\n" $value }}
{{- else if kindIs "string" $value -}}
{{ $value }}
{{- else -}}
{{ toJson $value }}
{{- end -}}
{{- end -}}
