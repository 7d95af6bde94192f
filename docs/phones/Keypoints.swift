// Camera -> Core ML -> keypoints with covariance and confidence, for iOS 16 or later.
//
// NOT COMPILED: this repository is developed on Linux, without Xcode. The decoding is that of
// ptri/export/decode.py, step by step, which is tested; the rest follows Apple's documentation.
//
// Put ptri_2d_s0_256_float16.mlpackage and ptri_2d_s0_256_decoder.json (scripts/export.py) into the
// app's target; Xcode compiles the package to ptri_2d_s0_256_float16.mlmodelc. Info.plist needs
// NSCameraUsageDescription.

import AVFoundation
import CoreImage
import CoreML

/// One joint, in px of the camera's image; integer coordinates are pixel centres.
struct Keypoint {
    var x, y: Float
    var xx, xy, yy: Float  // covariance, px^2
    var confidence: Float  // 0 to 1
}

/// What the file *_decoder.json holds: constants, and the weights of the uncertainty.
struct Decoder: Decodable {
    let imageSize: Int
    let joints: [String]
    let stride, window, maxAnisotropy, minVariance: Float
    let featureWeight: [[Float]], featureBias: [Float]  // (K, C), (K)
    let statisticsWeight: [[Float]], statisticsBias: [Float]  // (K, 4), (K)
    let jointBias: [[Float]]  // (J, K)
    let outputWeight: [[Float]], outputBias: [Float]  // (2, K), (2)
    let blur: Float

    static func read(_ url: URL) throws -> Decoder {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        return try decoder.decode(Decoder.self, from: Data(contentsOf: url))
    }

    /// Keypoints in px of the network's image, from `logits` (J, h, w) and `features` (C, h, w).
    func decode(logits: [Float], features: [Float], height: Int, width: Int) -> [Keypoint] {
        let count = height * width
        let channels = features.count / count
        return joints.indices.map { joint in
            // 1. The heatmap: softmax over pixels.
            var p = Array(logits[joint * count..<(joint + 1) * count])
            let highest = p.max()!
            for i in 0..<count { p[i] = exp(p[i] - highest) }
            let total = p.reduce(0, +)
            for i in 0..<count { p[i] /= total }
            // 2. The mode, then the mean of a window around it.
            let mode = p.indices.max { p[$0] < p[$1] }!
            let peak = p[mode]
            let first = moments(p, width, height, Float(mode % width), Float(mode / width))
            // 3. Moments of the window around that mean.
            let m = moments(p, width, height, first.x, first.y)
            // 4. Size of the error, and confidence.
            let variance = (m.xx + m.yy) / 2 + minVariance
            let half = (m.xx - m.yy) / 2
            let radius = (half * half + m.xy * m.xy + minVariance * minVariance).squareRoot()
            var pooled = [Float](repeating: 0, count: channels)
            for c in 0..<channels {
                for i in 0..<count { pooled[c] += p[i] * features[c * count + i] }
            }
            let statistics = [log(peak), log(m.mass), log(variance), radius / variance]
            var output = outputBias
            for k in featureBias.indices {
                var hidden = featureBias[k] + statisticsBias[k] + jointBias[joint][k]
                for c in 0..<channels { hidden += featureWeight[k][c] * pooled[c] }
                for s in 0..<4 { hidden += statisticsWeight[k][s] * statistics[s] }
                if hidden > 0 {
                    output[0] += outputWeight[0][k] * hidden
                    output[1] += outputWeight[1][k] * hidden
                }
            }
            let size = variance * exp(10 * tanh(output[0] / 5)) * stride * stride
            let scale = max(variance - blur, radius / maxAnisotropy)
            return Keypoint(
                x: (m.x + 0.5) * stride - 0.5, y: (m.y + 0.5) * stride - 0.5,
                xx: size * (1 + half / scale), xy: size * m.xy / scale,
                yy: size * (1 - half / scale), confidence: 1 / (1 + exp(-output[1])))
        }
    }

    /// Mass, mean and central second moments of a heatmap inside the window around a centre.
    private func moments(
        _ p: [Float], _ width: Int, _ height: Int, _ centreX: Float, _ centreY: Float
    ) -> (mass: Float, x: Float, y: Float, xx: Float, xy: Float, yy: Float) {
        func edge(_ distance: Float) -> Float { min(max(window + 0.5 - abs(distance), 0), 1) }
        var mass: Float = 0, x: Float = 0, y: Float = 0, xx: Float = 0, xy: Float = 0, yy: Float = 0
        for row in 0..<height {
            let dy = Float(row) - centreY
            let inside = edge(dy)
            if inside == 0 { continue }
            for column in 0..<width {
                let dx = Float(column) - centreX
                let weight = p[row * width + column] * inside * edge(dx)
                mass += weight
                x += weight * dx
                y += weight * dy
                xx += weight * dx * dx
                xy += weight * dx * dy
                yy += weight * dy * dy
            }
        }
        x /= mass
        y /= mass
        return (
            mass, centreX + x, centreY + y, xx / mass - x * x, xy / mass - x * y, yy / mass - y * y)
    }
}

/// The network on square crops of camera images.
final class KeypointDetector {
    private let model: MLModel
    private let decoder: Decoder
    // No colour management: the network was trained on the numbers as they are.
    private let context = CIContext(options: [.workingColorSpace: NSNull()])
    private let buffer: CVPixelBuffer

    init(bundle: Bundle = .main, name: String = "ptri_2d_s0_256") throws {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = .all  // neural engine, GPU and CPU
        let package = bundle.url(forResource: name + "_float16", withExtension: "mlmodelc")!
        model = try MLModel(contentsOf: package, configuration: configuration)
        let constants = bundle.url(forResource: name + "_decoder", withExtension: "json")!
        decoder = try Decoder.read(constants)
        var created: CVPixelBuffer?
        let side = decoder.imageSize
        let options = [kCVPixelBufferIOSurfacePropertiesKey: [:]] as CFDictionary
        CVPixelBufferCreate(nil, side, side, kCVPixelFormatType_32BGRA, options, &created)
        buffer = created!
    }

    /// Keypoints in px of the camera's image.
    ///
    /// `corner` and `side`: the person's square, in px from the image's upper left corner. It
    /// should hold the whole person, and little more.
    func keypoints(in image: CVPixelBuffer, corner: CGPoint, side: CGFloat) throws -> [Keypoint] {
        let factor = CGFloat(decoder.imageSize) / side
        let bottom = CGFloat(CVPixelBufferGetHeight(image)) - corner.y - side  // CIImage: y upwards
        let crop = CIImage(cvPixelBuffer: image)
            .transformed(by: CGAffineTransform(translationX: -corner.x, y: -bottom))
            .transformed(by: CGAffineTransform(scaleX: factor, y: factor))
        context.render(crop, to: buffer)
        let input = try MLDictionaryFeatureProvider(dictionary: [
            "image": MLFeatureValue(pixelBuffer: buffer)
        ])
        let output = try model.prediction(from: input)
        let logits = MLShapedArray<Float>(
            converting: output.featureValue(for: "logits")!.multiArrayValue!)
        let features = MLShapedArray<Float>(
            converting: output.featureValue(for: "features")!.multiArrayValue!)
        let found = decoder.decode(
            logits: logits.scalars, features: features.scalars,
            height: logits.shape[2], width: logits.shape[3])
        let back = Float(1 / factor)
        return found.map { point in
            var point = point
            point.x = (point.x + 0.5) * back - 0.5 + Float(corner.x)
            point.y = (point.y + 0.5) * back - 0.5 + Float(corner.y)
            point.xx *= back * back
            point.xy *= back * back
            point.yy *= back * back
            return point
        }
    }
}

/// The camera: keypoints of the largest centred square of every image.
final class KeypointCamera: NSObject, AVCaptureVideoDataOutputSampleBufferDelegate {
    let session = AVCaptureSession()
    var onKeypoints: ([Keypoint]) -> Void = { _ in }
    private let detector: KeypointDetector
    private let queue = DispatchQueue(label: "keypoints")

    init(detector: KeypointDetector) throws {
        self.detector = detector
        super.init()
        session.sessionPreset = .hd1280x720
        let camera = AVCaptureDevice.default(.builtInWideAngleCamera, for: .video, position: .back)!
        session.addInput(try AVCaptureDeviceInput(device: camera))
        let output = AVCaptureVideoDataOutput()
        output.videoSettings = [
            kCVPixelBufferPixelFormatTypeKey as String: kCVPixelFormatType_32BGRA
        ]
        output.alwaysDiscardsLateVideoFrames = true
        output.setSampleBufferDelegate(self, queue: queue)
        session.addOutput(output)
        output.connection(with: .video)?.videoOrientation = .portrait  // people upright
    }

    func start() { queue.async { self.session.startRunning() } }

    func captureOutput(
        _ output: AVCaptureOutput, didOutput sample: CMSampleBuffer,
        from connection: AVCaptureConnection
    ) {
        guard let image = CMSampleBufferGetImageBuffer(sample) else { return }
        let width = CGFloat(CVPixelBufferGetWidth(image))
        let height = CGFloat(CVPixelBufferGetHeight(image))
        let side = min(width, height)
        let corner = CGPoint(x: (width - side) / 2, y: (height - side) / 2)
        if let found = try? detector.keypoints(in: image, corner: corner, side: side) {
            onKeypoints(found)
        }
    }
}
