{{/* Names, labels and the parts of a pod that all rooms share. Every name begins with the release's. */}}

{{- define "signalbox.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* signalbox.selector (dict "root" $ "room" "gateway"): what selects a room's pods; it never changes. */}}
{{- define "signalbox.selector" -}}
app.kubernetes.io/name: signalbox
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .room }}
{{- end -}}

{{- define "signalbox.labels" -}}
{{ include "signalbox.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: signalbox
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "signalbox.podLabels" -}}
{{ include "signalbox.selector" . }}
app.kubernetes.io/part-of: signalbox
{{- with .root.Values.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* signalbox.image (dict "root" $ "image" .Values.image) */}}
{{- define "signalbox.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}

{{- define "signalbox.roomsSecret" -}}
{{ .Values.rooms.existingSecret | default (printf "%s-rooms" (include "signalbox.name" .)) }}
{{- end -}}

{{- define "signalbox.tlsSecret" -}}
{{- if eq .Values.rooms.tls.mode "Existing" -}}
{{ .Values.rooms.tls.existingSecret }}
{{- else if ne .Values.rooms.tls.mode "Disabled" -}}
{{ include "signalbox.name" . }}-rooms-tls
{{- end -}}
{{- end -}}

{{- define "signalbox.authoritySecret" -}}
{{ include "signalbox.name" . }}-rooms-authority
{{- end -}}

{{- define "signalbox.redisSecret" -}}
{{ .Values.redis.existingSecret | default (printf "%s-redis" (include "signalbox.name" .)) }}
{{- end -}}

{{- define "signalbox.postgresqlSecret" -}}
{{ .Values.postgresql.existingSecret | default (printf "%s-postgresql" (include "signalbox.name" .)) }}
{{- end -}}

{{- define "signalbox.sqlite" -}}
{{- if not (or .Values.postgresql.bundled.enabled .Values.postgresql.existingSecret) }}true{{ end -}}
{{- end -}}

{{- define "signalbox.encryptionSecret" -}}
{{ .Values.tokenRefresher.existingSecret | default (printf "%s-token-refresher" (include "signalbox.name" .)) }}
{{- end -}}

{{/* The namespaces that are watched, as JSON; ["*"] is all. */}}
{{- define "signalbox.watchNamespaces" -}}
{{- if has "*" .Values.watchNamespaces -}}
["*"]
{{- else -}}
{{ .Values.watchNamespaces | default (list .Release.Namespace) | toJson }}
{{- end -}}
{{- end -}}

{{/* A value of a Secret that was made before, base64; "" where there is none or the cluster can't be asked. */}}
{{- define "signalbox.kept" -}}
{{- $secret := lookup "v1" "Secret" .root.Release.Namespace .name -}}
{{- if $secret -}}{{ dig "data" .key "" $secret }}{{- end -}}
{{- end -}}

{{/* Variables that every room reads, and the command line with them: any pod answers `signalbox requests`. */}}
{{- define "signalbox.env" -}}
{{- $name := include "signalbox.name" .root }}
- {name: SIGNALBOX_ADDR, value: "env:"}
- {name: SIGNALBOX_SCHEDULER_ADDRESS, value: "{{ $name }}-scheduler:7001"}
- {name: SIGNALBOX_TOKEN_REFRESHER_ADDRESS, value: "{{ $name }}-token-refresher:7002"}
- {name: SIGNALBOX_USAGE_ADDRESS, value: "{{ $name }}-usage:7003"}
- {name: SIGNALBOX_TELEMETRY_ADDRESS, value: "0.0.0.0:9090"}
- {name: SIGNALBOX_LOG_LEVEL, value: {{ .root.Values.log.level | quote }}}
- {name: SIGNALBOX_LOG_FORMAT, value: {{ .root.Values.log.format | quote }}}
- {name: SIGNALBOX_START_PATIENCE_SECONDS, value: "240"}
- name: SIGNALBOX_SHARED_SECRET
  valueFrom: {secretKeyRef: {name: {{ include "signalbox.roomsSecret" .root }}, key: shared-secret}}
{{- if include "signalbox.tlsSecret" .root }}
- {name: SIGNALBOX_TLS_CERT_FILE, value: /etc/signalbox/tls/tls.crt}
- {name: SIGNALBOX_TLS_KEY_FILE, value: /etc/signalbox/tls/tls.key}
- {name: SIGNALBOX_TLS_CA_FILE, value: /etc/signalbox/tls/ca.crt}
{{- end }}
{{- end -}}

{{- define "signalbox.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if include "signalbox.tlsSecret" .root }}
- {name: tls, mountPath: /etc/signalbox/tls, readOnly: true}
{{- end }}
{{- end -}}

{{- define "signalbox.volumes" -}}
- {name: tmp, emptyDir: {sizeLimit: 64Mi}}
{{- if include "signalbox.tlsSecret" .root }}
- {name: tls, secret: {secretName: {{ include "signalbox.tlsSecret" .root }}, defaultMode: 0440}}
{{- end }}
{{- end -}}

{{- define "signalbox.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Alive while the event loop turns; started once all that it needs was there once. `ready` is what takes a pod out of
its Service: for the gateway that is its life alone, because its callers are owed `scheduler_unavailable`, not a refused
connection, while schedulers are away. */}}
{{- define "signalbox.probes" -}}
startupProbe:
  httpGet: {path: {{ .started | default "/readyz" }}, port: telemetry}
  periodSeconds: 1
  timeoutSeconds: 2
  failureThreshold: 300
livenessProbe:
  httpGet: {path: /healthz, port: telemetry}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet: {path: {{ .ready | default "/readyz" }}, port: telemetry}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
{{- end -}}

{{/* signalbox.podSpec (dict "root" $ "room" "gateway" "values" .Values.gateway): what goes before a room's container. */}}
{{- define "signalbox.podSpec" -}}
serviceAccountName: {{ include "signalbox.name" .root }}-{{ .room }}
automountServiceAccountToken: {{ .token | default false }}
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .values.terminationGracePeriodSeconds | int }}
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- {name: {{ . }}}
{{- end }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- if .values.topologySpreadConstraints }}
  {{- toYaml .values.topologySpreadConstraints | nindent 2 }}
{{- else }}
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "signalbox.selector" . | nindent 6 }}
{{- end }}
{{- end -}}
