{{- define "tuneline.labels" -}}
app.kubernetes.io/name: tuneline
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* The pods that serve, for selectors. */}}
{{- define "tuneline.serving" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
tuneline.io/part: serving
{{- end }}

{{/* What both containers of a serving pod share. */}}
{{- define "tuneline.container" -}}
envFrom:
  {{- range .Values.secrets }}
  - secretRef: {name: {{ . }}}
  {{- end }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
volumeMounts:
  - {name: settings, mountPath: /etc/tuneline, readOnly: true}
  - {name: keys, mountPath: /var/run/tuneline/keys, readOnly: true}
  - {name: state, mountPath: /var/lib/tuneline}
  - {name: cache, mountPath: /var/cache/tuneline}
  - {name: tmp, mountPath: /tmp}
  - {name: home, mountPath: /home/tuneline}
{{- end }}

{{/* The gateway's file without what is released. */}}
{{- define "tuneline.settings" -}}
host: 0.0.0.0
port: 8000
keys_file: /var/run/tuneline/keys/keys.json
ledger:
  path: /var/lib/tuneline/usage.sqlite
production_log:
  store: {{ .Values.store }}
  spool: /var/lib/tuneline/spool
# Load balancers notice the probe before the port closes.
drain:
  delay_s: 10
  timeout_s: 60
{{- end }}

{{/* Name servers, and what else pods may connect to. */}}
{{- define "tuneline.egress" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
- to: {{- toYaml . | nindent 4 }}
{{- end }}
