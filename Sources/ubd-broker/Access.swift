import BrokerInterface
import Policy
import SystemCalls
import Targets

/// Who may do what. Every decision is an event of the log: who asked, for what, whether it was allowed, and by which line of
/// the access policy, or as whom.
extension Broker {
    /// What the policy says of a device that somebody asks for. `line`: the one that decides, if one does.
    func permit(
        _ plan: AddPlan, _ peer: PeerCredentials, line: inout String?
    ) throws(InterfaceError) -> AccessRule {
        let request = AccessRequest(
            target: plan.target.name, readOnly: plan.readOnly, queues: UInt64(plan.queues), depth: UInt64(plan.depth),
            maxIOBytes: UInt64(plan.maxIOBytes), sizeBytes: plan.target.inputs.isEmpty ? plan.options.size : nil,
            ioTimeout: plan.ioTimeout.map { UInt64($0) }, id: plan.id.map { UInt64($0) }, cpus: plan.cpus?.list)
        line = policy.rule(for: accessPeer(peer), target: request.target)?.place
        switch policy.decide(accessPeer(peer), request, usage: usage(of: peer.uid)) {
        case .allowed(let rule):
            try takeStart(rule.limits, rule, of: peer)
            return rule
        case .refused(let refusal): throw Refusals.explain(refusal, request, configuration.accessPolicy)
        }
    }

    /// One worker more that this user's requests start. `rule`: nil when none lets the user have anything.
    private func takeStart(
        _ limits: AccessLimits, _ rule: AccessRule?, of peer: PeerCredentials
    ) throws(InterfaceError) {
        let line = rule?.location.line ?? 0
        let account = account(of: peer.uid)
        guard let refusal = startLimits.take(uid: account, line: line, limits, now: monotonicNanoseconds()) else {
            return
        }
        let file = configuration.accessPolicy
        let place = rule.map { "line \($0.location.line) of \(file)" } ?? "those to whom \(file) gives nothing any more"
        throw Refusals.explain(refusal, limits, place)
    }

    /// Whom the policy gives nothing any more may keep what he has, and see to it. That is no way around its limits.
    private static let limitsWithoutRule: AccessLimits = {
        var limits = AccessLimits()
        limits.maxStarts = 60
        limits.penalty = StartLimits.longestPenalty
        // What hangs counts here; the devices themselves may stay.
        limits.maxDevices = 16
        return limits
    }()

    /// The same for a device that there is.
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

    /// How an add ends that was allowed: what only the opened file tells may be against the policy, too.
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

    /// Whom a uid counts as: an account is one user, with all the uids that /etc/subuid gives it.
    func account(of uid: UInt32) -> UInt32 { accounts.account(of: uid) }

    /// Which part of the connections a client shares.
    func standing(of peer: PeerCredentials) -> Admission.Standing {
        if peer.uid == 0 { return .root }
        let access = accessPeer(peer)
        let mayAdd = TargetList.all.contains { policy.rule(for: access, target: $0.name)?.isAllow == true }
        return mayAdd || devices.values.contains { $0.owner == peer.uid } ? .permitted : .stranger
    }

    /// What a user has: devices, adds under way, and what hangs for their sake (`lingering`).
    func usage(of uid: UInt32) -> AccessUsage {
        let account = account(of: uid)
        let owned = devices.values.filter { self.account(of: $0.owner) == account }
        let pending = adds.values.filter { self.account(of: $0.ownerUID) == account && $0.hasNoDevice }
        let lingering = lingering(for: account)
        return AccessUsage(
            devices: UInt64(owned.count + pending.count) + lingering.devices,
            memoryBytes: Self.sum([lingering.memoryBytes] + owned.map(\.memoryBytes) + pending.map(\.memoryBytes)))
    }

    /// Bytes of records may be anything.
    private static func sum(_ all: [UInt64]) -> UInt64 {
        all.reduce(0) { sum, bytes in
            let (both, overflow) = sum.addingReportingOverflow(bytes)
            return overflow ? .max : both
        }
    }

    /// What hangs for an account's sake and is no device: children that close files or write settings, and workers of
    /// rehearsals that can't be killed, with their buffers. Each counts as a device.
    private func lingering(for account: UInt32) -> AccessUsage {
        let stuck = stuckRehearsals.values.filter { self.account(of: $0.owner) == account }
        return AccessUsage(
            devices: UInt64(undertaker.waiting(for: account) + stuck.count),
            memoryBytes: Self.sum(stuck.map(\.memoryBytes)))
    }

    /// A device that there is gets another worker, which costs nothing more, unless things hang already: what hangs and the
    /// devices together must be within the limits, as for an add.
    private func demandRoom(
        _ limits: AccessLimits, _ rule: AccessRule?, of peer: PeerCredentials
    ) throws(InterfaceError) {
        let lingering = lingering(for: account(of: peer.uid))
        guard peer.uid != 0, lingering.devices > 0 else { return }
        let usage = usage(of: peer.uid)
        let place =
            rule.map { "line \($0.location.line) of \(configuration.accessPolicy)" } ?? "whom no rule lets have more"
        let checks = [
            ("max-devices", limits.maxDevices, usage.devices, lingering.devices),
            ("max-memory", limits.maxMemoryBytes, usage.memoryBytes, lingering.memoryBytes),
        ]
        for (limit, most, has, hanging) in checks {
            guard let most, hanging > 0, has > most else { continue }
            throw .quotaReached(
                message: "\(has) exceeds \(limit)=\(most) of \(place): \(hanging) of that hangs",
                remedy: "see to the files and disks that do not answer, or delete a device", limit: limit,
                value: Int64(clamping: most))
        }
    }

    // MARK: Devices that there are

    /// A device that this client may do something to, which is noted as `event`; nil when there is none.
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

    /// The client hears the same whether there is no such device or another user's; the log knows.
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
    /// Where it stands, for the log.
    var place: String { "\(location.file):\(location.line)" }
}
