import BrokerInterface
import SystemCalls

extension Broker {
    /// Begins to tell a client what becomes of devices. `wake`: there is something to tell.
    func monitor(
        _ request: MonitorRequest, peer: PeerCredentials, standing: Admission.Standing, wake: @escaping () -> Void
    ) throws(InterfaceError) -> Monitor {
        let account = account(of: peer.uid)
        var kept: [UInt32: UInt64] = [:]
        for id in request.ids ?? [] {
            guard let device = devices[id], mayTouch(device, peer) else {
                noteRefusal(of: id, for: "monitor", peer)
                throw noSuchDevice(id)
            }
            guard request.keep == true else { continue }
            if let error = keepingRefusal(of: device, peer) { throw error }
            kept[id] = device.info.generation
        }
        if peer.uid != 0 {
            if kept.isEmpty, standing == .stranger {
                throw .notPermitted(
                    message: "not permitted: no rule of \(configuration.accessPolicy) lets you have a device",
                    remedy: "ask the administrator", rule: nil)
            }
            if let error = monitors.refusal(account: account, keeps: !kept.isEmpty) { throw error }
        }
        let monitor = Monitor(
            peer, ids: request.ids.map { Set($0) }, kept: kept, present: request.ids ?? Array(devices.keys),
            device: { [unowned self] id in devices[id].flatMap { mayTouch($0, peer) ? $0 : nil } }, wake: wake)
        monitors.add(monitor, account: account)
        Log.client(
            .request, peer.uid, .info, "monitor",
            [
                ("uid", "\(peer.uid)"), ("pid", "\(peer.pid)"), ("keeps", "\(kept.keys.sorted())"),
                ("result", "allowed"), ("rule", peer.uid == 0 ? "root" : "owner"),
            ])
        return monitor
    }

    /// Why this client does not keep that device; nil when it may.
    private func keepingRefusal(of device: ManagedDevice, _ peer: PeerCredentials) -> InterfaceError? {
        let name = device.info.link ?? device.info.node
        guard device.needsFreshInputs else {
            return .invalidOption(
                message: "keep can not be true: \(name) has a file, which needs no keeper", remedy: "leave it out",
                option: "keep", value: "true")
        }
        if let refusal = ownersAlone(device, peer, "keep") { return refusal }
        guard let pid = monitors.keeper(of: device) else { return nil }
        return .busy(
            message: "\(name) has a keeper already, process \(pid)", remedy: "end that one first ('kill \(pid)')",
            id: Int64(device.id), holder: "process \(pid)")
    }

    /// Root may see to every device, but not say which server is another user's.
    func ownersAlone(_ device: ManagedDevice, _ peer: PeerCredentials, _ what: String) -> InterfaceError? {
        guard device.needsFreshInputs, peer.uid != device.owner else { return nil }
        return .notPermitted(
            message: "not permitted: \(device.info.link ?? device.info.node) has connections of its owner's "
                + "(uid \(device.owner)), and only its owner may \(what) it",
            remedy: "let its owner do it", rule: nil)
    }
}
