import BrokerInterface
import Policy
import SystemCalls
import Targets

/// Access decisions. Each is logged: the user, the operation, whether it was allowed, and the line of the access policy
/// or the role that decided.
extension Broker {
    /// Decides whether the policy permits a new device. `line`: the line that decides, if any.
    func permit(
        _ plan: AddPlan, _ peer: PeerCredentials, line: inout String?
    ) throws(InterfaceError) -> AccessRule {
        let request = AccessRequest(
            target: plan.target.name, readOnly: plan.readOnly, queues: UInt64(plan.queues), depth: UInt64(plan.depth),
            maxIOBytes: UInt64(plan.maxIOBytes),
            // Of a file only the worker learns the size.
            sizeBytes: plan.target.hasOwnSize || plan.target.takesSockets ? plan.options.size : nil,
            ioTimeout: plan.ioTimeout.map { UInt64($0) }, id: plan.id.map { UInt64($0) }, cpus: plan.cpus?.list,
            connections: plan.target.queues == .onePerConnection ? UInt64(plan.queues) : nil,
            spareBuffers: UInt64(plan.target.buffers(depth: plan.depth)) - UInt64(plan.depth),
            extraBytes: plan.extraBytes, diskBytes: plan.diskBytes)
        line = policy.rule(for: accessPeer(peer), target: request.target)?.place
        switch policy.decide(accessPeer(peer), request, usage: usage(of: peer.uid)) {
        case .allowed(let rule):
            try takeStart(rule.limits, rule, of: peer)
            return rule
        case .refused(let refusal): throw Refusals.explain(refusal, request, configuration.accessPolicy)
        }
    }

    /// Counts one more worker start for this user. `rule`: nil when no rule allows the user anything.
    private func takeStart(
        _ limits: AccessLimits, _ rule: AccessRule?, of peer: PeerCredentials
    ) throws(InterfaceError) {
        let line = rule?.location.line ?? 0
        let account = account(of: peer.uid)
        guard let refusal = startLimits.take(uid: account, line: line, limits, now: monotonicNanoseconds()) else {
            return
        }
        let file = configuration.accessPolicy
        let place = rule.map { "line \($0.location.line) of \(file)" } ?? "users without a rule in \(file)"
        throw Refusals.explain(refusal, limits, place)
    }

    /// Users whom no rule allows may still manage the devices they have: 60 starts a minute, one-hour penalty.
    private static let limitsWithoutRule: AccessLimits = {
        var limits = AccessLimits()
        limits.maxStarts = 60
        limits.penalty = StartLimits.longestPenalty
        // Applies only while something hangs (`demandRoom`); the devices themselves may stay.
        limits.maxDevices = 16
        return limits
    }()

    /// Decides whether the policy permits a new worker for an existing device.
    func permitStart(for device: ManagedDevice, _ operation: String, _ peer: PeerCredentials) -> InterfaceError? {
        let decisive = policy.rule(for: accessPeer(peer), target: device.info.target)
        let rule = decisive.flatMap { $0.isAllow ? $0 : nil }
        let limits = rule?.limits ?? Self.limitsWithoutRule
        do throws(InterfaceError) {
            try demandRoom(limits, rule, of: peer)
            try takeStart(limits, rule, of: peer)
        } catch {
            Log.client(
                .refusal, peer.uid, .notice, "access-refused",
                [
                    ("operation", operation), ("device", "\(device.id)"), ("uid", "\(peer.uid)"),
                    ("pid", "\(peer.pid)"), ("result", "refused"), ("rule", decisive?.place ?? "none"),
                    ("why", error.message),
                ])
            return error
        }
        return nil
    }

    /// Logs how an allowed add ended. The policy may still refuse it when the file has been opened.
    func note(_ error: InterfaceError, of plan: AddPlan, _ rule: AccessRule, _ peer: PeerCredentials) {
        let isRefusal =
            switch error {
            case .notPermitted, .quotaReached, .limitReached: true
            default: false
            }
        Log.client(
            isRefusal ? .refusal : .request, peer.uid, .notice, isRefusal ? "add-refused" : "add-failed",
            [
                ("uid", "\(peer.uid)"), ("pid", "\(peer.pid)"), ("target", plan.target.name),
                ("result", isRefusal ? "refused" : "failed"), ("rule", rule.place), ("why", error.message),
            ])
    }

    func accessPeer(_ peer: PeerCredentials) -> AccessPeer {
        AccessPeer(uid: peer.uid, groups: [peer.gid] + peer.groups)
    }

    /// The account of a uid: an account is one user, with all uids that /etc/subuid gives it.
    func account(of uid: UInt32) -> UInt32 { accounts.account(of: uid) }

    /// The part of the connections that a client shares.
    func standing(of peer: PeerCredentials) -> Admission.Standing {
        if peer.uid == 0 { return .root }
        let access = accessPeer(peer)
        let mayAdd = TargetList.all.contains { policy.rule(for: access, target: $0.name)?.isAllow == true }
        let account = account(of: peer.uid)
        let hasDevice = devices.values.contains { self.account(of: $0.owner) == account }
        return mayAdd || hasDevice ? .permitted : .stranger
    }

    /// A user's devices, running adds, and what hangs for the user (`lingering`).
    func usage(of uid: UInt32) -> AccessUsage {
        let account = account(of: uid)
        let owned = devices.values.filter { self.account(of: $0.owner) == account }
        let pending = adds.values.filter { self.account(of: $0.ownerUID) == account && $0.hasNoDevice }
        let lingering = lingering(for: account)
        return AccessUsage(
            devices: UInt64(owned.count + pending.count) + lingering.devices,
            memoryBytes: Self.sum([lingering.memoryBytes] + owned.map(\.memoryBytes) + pending.map(\.memoryBytes)),
            diskBytes: Self.sum(owned.map(\.diskBytes) + pending.map(\.diskBytes)))
    }

    /// Saturating, since a record may contain any number.
    private static func sum(_ all: [UInt64]) -> UInt64 {
        all.reduce(0) { sum, bytes in
            let (both, overflow) = sum.addingReportingOverflow(bytes)
            return overflow ? .max : both
        }
    }

    /// What hangs for an account besides its devices: children that close files or write settings, and unkillable
    /// workers of rehearsals with their buffers. Each counts as a device.
    private func lingering(for account: UInt32) -> AccessUsage {
        let stuck = stuckRehearsals.values.filter { self.account(of: $0.owner) == account }
        return AccessUsage(
            devices: UInt64(undertaker.waiting(for: account) + stuck.count),
            memoryBytes: Self.sum(stuck.map(\.memoryBytes)))
    }

    /// A new worker for an existing device costs nothing more, so this checks only users for whom something hangs:
    /// their devices and what hangs must together be within the limits, as for an add.
    private func demandRoom(
        _ limits: AccessLimits, _ rule: AccessRule?, of peer: PeerCredentials
    ) throws(InterfaceError) {
        let lingering = lingering(for: account(of: peer.uid))
        guard peer.uid != 0, lingering.devices > 0 else { return }
        let usage = usage(of: peer.uid)
        let place =
            rule.map { "line \($0.location.line) of \(configuration.accessPolicy)" }
            ?? "users without a rule in \(configuration.accessPolicy)"
        let checks = [
            ("max-devices", limits.maxDevices, usage.devices, lingering.devices),
            ("max-memory", limits.maxMemoryBytes, usage.memoryBytes, lingering.memoryBytes),
        ]
        for (limit, most, has, hanging) in checks {
            guard let most, hanging > 0, has > most else { continue }
            throw .quotaReached(
                message: "\(has) exceeds \(limit)=\(most) of \(place), including \(hanging) that hang",
                remedy: "repair the files and disks that do not answer, or delete a device", limit: limit,
                value: Int64(clamping: most))
        }
    }

    // MARK: Existing devices

    /// A device on which this client may operate; logs the request as `event`. Returns nil, and logs a refusal, when
    /// there is none.
    func device(
        _ id: UInt32, _ generation: UInt64?, for event: String, of peer: PeerCredentials, _ more: Log.Field...
    ) -> ManagedDevice? {
        guard let device = devices[id], mayTouch(device, peer),
            generation == nil || generation == device.info.generation
        else {
            noteRefusal(of: id, for: event, peer)
            return nil
        }
        Log.client(
            .request, peer.uid, .info, event,
            [("device", "\(id)"), ("uid", "\(peer.uid)"), ("pid", "\(peer.pid)")] + more
                + [("result", "allowed"), ("rule", peer.uid == device.owner ? "owner" : "root")])
        return device
    }

    /// The client gets the same answer for a missing device and another user's; the log tells them apart.
    func noteRefusal(of id: UInt32, for operation: String, _ peer: PeerCredentials) {
        let rule =
            switch devices[id] {
            case nil: "no-such-device"
            case .some(let device) where mayTouch(device, peer): "another-generation"
            case .some: "not-owner"
            }
        Log.client(
            .refusal, peer.uid, .notice, "access-refused",
            [
                ("operation", operation), ("device", "\(id)"), ("uid", "\(peer.uid)"), ("pid", "\(peer.pid)"),
                ("result", "refused"), ("rule", rule),
            ])
    }

    func noSuchDevice(_ id: UInt32) -> InterfaceError {
        .noSuchDevice(message: "you have no device \(id)", remedy: "'ubd list' shows your devices", id: Int64(id))
    }

    func mayTouch(_ device: ManagedDevice, _ peer: PeerCredentials) -> Bool {
        peer.uid == 0 || peer.uid == device.owner
    }
}

extension AccessRule {
    /// File and line of the rule, for the log.
    var place: String { "\(location.file):\(location.line)" }
}
