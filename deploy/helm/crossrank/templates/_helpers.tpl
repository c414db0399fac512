{{- define "crossrank.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Takes (list . "gateway"): what selects a component's pods; it never changes over a release's life. */}}
{{- define "crossrank.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "crossrank.labels" -}}
{{- $root := index . 0 -}}
{{ include "crossrank.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{- define "crossrank.tritonUrl" -}}
grpc://{{ include "crossrank.fullname" . }}-triton:8001
{{- end -}}

{{- define "crossrank.gatewayScheme" -}}
{{ ternary "https" "http" (ne .Values.gateway.tls.existingSecret "") }}
{{- end -}}
