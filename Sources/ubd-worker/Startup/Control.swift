import Glibc
import Ring
import SystemCalls
import WorkerProtocol

/// The worker's end of the control socket. Uses only read(2) and write(2), which stage B allows.
package enum Control {
    /// Sends a message. A missing broker is no reason to stop.
    static func say(_ message: WorkerMessage) {
        say(message.encoded())
    }

    /// Sends a message that was encoded while memory could still grow.
    package static func say(_ bytes: [UInt8]) {
        _ = bytes.withUnsafeBytes { write(WorkerDescriptor.control, $0.baseAddress, $0.count) }
    }

    /// Reports the failure, and ends the process.
    package static func fail(_ failure: WorkerFailure) -> Never {
        say(.failed(failure))
        _exit(WorkerExit.failed)
    }

    /// Receives the launch message, whose files get fixed numbers.
    static func receiveLaunch() throws(WorkerFailure) -> LaunchMessage {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: LaunchMessage.longest, alignment: 8)
        defer { buffer.deallocate() }
        let expected = WorkerDescriptor.launchFiles
        do {
            let received = try receiveWithFiles(
                WorkerDescriptor.control, into: buffer, maximum: expected.count, peek: false)
            guard received.files == expected else {
                throw WorkerFailure(.launchMessage, detail: UInt64(received.files.count))
            }
            guard let launch = LaunchMessage(decoding: Array(buffer[..<received.bytes])) else {
                throw WorkerFailure(.launchMessage, errno: EBADMSG)
            }
            return launch
        } catch let error as SystemError {
            throw WorkerFailure(.launchMessage, errno: error.errno)
        } catch let failure as WorkerFailure {
            throw failure
        } catch {
            throw WorkerFailure(.launchMessage)
        }
    }

    /// Reads the sandbox bundle and closes it, so that its number is free for the client's files.
    static func readBundle() throws(WorkerFailure) -> SandboxBundle {
        let file = FileDescriptor(owning: WorkerDescriptor.bundle)
        let bytes: [UInt8]
        do {
            // All workers of a target share this open file, so its offset is meaningless.
            bytes = try file.readWhole(limit: SandboxBundle.longest)
        } catch {
            throw WorkerFailure(.launchMessage, errno: error.errno, detail: UInt64(WorkerDescriptor.bundle))
        }
        guard let bundle = SandboxBundle(decoding: bytes) else {
            throw WorkerFailure(.launchMessage, errno: EBADMSG, detail: UInt64(WorkerDescriptor.bundle))
        }
        return bundle
    }

    /// Waits for "serve". Anything else is a failure.
    static func waitForServe() throws(WorkerFailure) -> ServeMessage {
        var bytes = [UInt8](repeating: 0, count: ServeMessage.longest + 1)
        let count: Int
        do {
            count = try call("read") { read(WorkerDescriptor.control, &bytes, bytes.count) }
        } catch {
            throw WorkerFailure(.controlMessage, errno: error.errno)
        }
        guard let message = ServeMessage(decoding: Array(bytes[..<count])) else {
            throw WorkerFailure(.controlMessage, errno: EBADMSG)
        }
        return message
    }

    /// The main thread while the worker serves. No message of this version of the protocol is meant for a worker that
    /// serves, so any message is a violation. Silence, even a closed socket, is not: the device outlives the broker.
    ///
    /// Allocates nothing. read(2) continues by itself when the process was stopped and continued. It returns at once
    /// when the socket was shut down; then the thread sleeps in a ring of its own, where nothing ever completes.
    package static func linger(_ idle: consuming Ring) -> Never {
        var byte: UInt8 = 0
        while true {
            let count = read(WorkerDescriptor.control, &byte, 1)
            if count > 0 { _exit(WorkerExit.protocolViolation) }
            if count < 0, errno == EINTR { continue }
            while true { _ = idle.submit(waitingFor: 1) }
        }
    }
}
