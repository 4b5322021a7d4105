{{- define "podid.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" -}}
{{- end }}

{{- define "podid.fullname" -}}
{{- default (include "podid.name" .) .Values.fullnameOverride | trunc 58 | trimSuffix "-" -}}
{{- end }}

{{- /* (list $ "mic") */ -}}
{{- define "podid.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "podid.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "podid.labels" -}}
{{ include "podid.selector" . }}
{{ include "podid.chart" (index . 0) }}
{{- end }}

{{- define "podid.chart" -}}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* (list $ "mic") */ -}}
{{- define "podid.image" -}}
{{- $root := index . 0 -}}
{{- $of := index $root.Values (index . 1) -}}
{{- $tag := $of.tag | default $root.Chart.AppVersion | toString -}}
{{- printf "%s/%s%s%s" ($root.Values.image.repository | trimSuffix "/") $of.image (ternary "@" ":" (hasPrefix "sha256:" $tag)) $tag -}}
{{- end }}

{{- /* Values that were strings once: "true" for true and "false" for false. */ -}}
{{- define "podid.is" -}}
{{- if eq (toString .) "true" }}true{{ end -}}
{{- end }}

{{- /* (list "--flag" value): nothing without a value. */ -}}
{{- define "podid.flag" -}}
{{- $value := index . 1 | toString -}}
{{- if and $value (ne $value "<nil>") }}
- {{ printf "%s=%s" (index . 0) $value | quote }}
{{- end -}}
{{- end }}

{{- /* As podid.flag; a bare number means seconds. */ -}}
{{- define "podid.duration" -}}
{{- $value := index . 1 | toString -}}
{{- include "podid.flag" (list (index . 0) (ternary (printf "%ss" $value) $value (regexMatch "^[0-9]+$" $value))) -}}
{{- end }}

{{- define "podid.standard" -}}
{{- if eq .Values.operationMode "standard" }}true{{ end -}}
{{- end }}

{{- /* (list $ "mic") */ -}}
{{- define "podid.subject" -}}
{{- $root := index . 0 -}}
- kind: ServiceAccount
  name: {{ include "podid.name" $root }}-{{ index . 1 }}
  namespace: {{ $root.Release.Namespace }}
{{- end }}

{{- define "podid.mic.lease" -}}
{{- .Values.mic.leaderElection.namespace | default "default" -}}
{{- end }}
