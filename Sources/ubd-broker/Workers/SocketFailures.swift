import WorkerProtocol

extension StartFailure {
    /// Sockets, or an agreement with a server, from which no device can be served: what is wrong and what to do; nil when the
    /// step is not about them. `detail` of most is the socket's place in the client's message.
    static func socket(_ failure: WorkerFailure, name: String) -> (message: String, remedy: String)? {
        let one = "socket \(failure.detail) of \(name)"
        let connect = "connect it to an NBD server, and send it when the server has agreed on an export"
        switch failure.step {
        case .fileIsNoSocket: return ("descriptor \(failure.detail) of \(name) is no socket", connect)
        case .socketFamily: return ("\(one) is of another family than AF_UNIX, AF_INET and AF_INET6", connect)
        case .socketProtocol: return ("\(one) is no stream by TCP or AF_UNIX", connect)
        case .socketNotConnected: return ("\(one) is not connected", connect)
        case .socketNotLocked:
            return ("the options of \(one) are not locked", "set SO_LOCK_FILTER on it before it is sent")
        case .socketNotLocal:
            return (
                "\(one) leads to another host", "use a server on this one, or ask the administrator for nbd=any"
            )
        case .socketTwice: return ("\(one) is one of the others once more", "make a connection for each queue")
        case .socketLayer:
            return ("\(one) has something else than TLS between it and TCP", "send plain TCP, or kernel TLS")
        case .agreement:
            return (
                "what was agreed on with the server of \(name) does not fit together (option \(failure.detail))",
                "this is a fault of whoever negotiated; with ubd's own client report it"
            )
        case .oneConnectionOnly:
            return (
                "the server of \(name) can have one connection, and \(failure.detail) were made", "use one queue"
            )
        case .noStableStorage:
            return (
                "the server of \(name) can not put a write on stable storage at once", "leave --write-through out"
            )
        default: return nil
        }
    }
}
