import BrokerInterface
import SystemCalls

/// Clients' requests that start an operation (except Recover and Upgrade, which are beside their operations).
extension Broker {
    /// Starts an add; returns nil when it is refused at once. `answer` gets all answers. The add is undone if
    /// `isWanted` returns false at its end, since the client is gone.
    func add(
        _ request: AddRequest, peer: PeerCredentials, isWanted: @escaping () -> Bool = { true },
        answer: @escaping (AddOperation.Answer) -> Void
    ) -> AddOperation? {
        var line: String?
        do throws(InterfaceError) {
            let plan = try AddPlan(request)
            try demandOnline(plan.cpus)
            let rule = try permit(plan, peer, line: &line)
            try demandOnline(anyOf: rule)
            try driver.ready()
            let choice = ModeChoice(
                kernel: driver.features, zeroCopyGranted: rule.limits.zeroCopy, rule: rule.text)
            let mode = try choice.mode(for: plan)
            let operation = AddOperation(
                plan, mode: mode, peer: peer, rule: rule, broker: self, isWanted: isWanted, answer: answer)
            Log.client(
                .request, peer.uid, .info, "add-allowed",
                [
                    ("uid", "\(peer.uid)"), ("pid", "\(peer.pid)"), ("target", request.target),
                    ("result", "allowed"), ("rule", rule.place),
                ])
            adds[ObjectIdentifier(operation)] = operation
            operation.begin()
            return operation
        } catch {
            Log.client(
                .refusal, peer.uid, .notice, "add-refused",
                [
                    ("uid", "\(peer.uid)"), ("pid", "\(peer.pid)"), ("target", request.target),
                    ("result", "refused"), ("rule", line ?? "none"), ("why", error.message),
                ])
            answer(.failed(error))
            return nil
        }
    }

    func delete(_ request: DeleteRequest, peer: PeerCredentials, completion: @escaping (InterfaceError?) -> Void) {
        let force = ("force", "\(request.force ?? false)")
        guard let device = device(request.id, request.generation, for: "delete", of: peer, force) else {
            return completion(noSuchDevice(request.id))
        }
        DeleteOperation(device, broker: self, completion: completion).begin(force: request.force ?? false)
    }
}
