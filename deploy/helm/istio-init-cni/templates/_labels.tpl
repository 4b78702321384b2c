{{- define "istio-init-cni.labels" -}}
app.kubernetes.io/name: istio-init-cni
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}
