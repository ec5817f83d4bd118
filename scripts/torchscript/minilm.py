# all-MiniLM-L6-v2 as TorchScript: the methods of a module whose attributes are the published weights, their names with
# underscores for dots. `nereid torchscript` compiles it. A sentence's embedding is the mean over the tokens that its mask
# keeps, scaled to length 1.


def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    tokens = input_ids.size(1)
    words = torch.embedding(self.embeddings_word_embeddings_weight, input_ids)
    positions = torch.narrow(self.embeddings_position_embeddings_weight, 0, 0, tokens)
    kinds = self.embeddings_token_type_embeddings_weight[0]
    hidden = torch.layer_norm(
        words + positions + kinds, [384], self.embeddings_LayerNorm_weight, self.embeddings_LayerNorm_bias, 1e-12
    )
    kept = attention_mask != 0
    seen = kept.unsqueeze(1).unsqueeze(1)
    hidden = self.layer(
        hidden,
        seen,
        self.encoder_layer_0_attention_self_query_weight,
        self.encoder_layer_0_attention_self_query_bias,
        self.encoder_layer_0_attention_self_key_weight,
        self.encoder_layer_0_attention_self_key_bias,
        self.encoder_layer_0_attention_self_value_weight,
        self.encoder_layer_0_attention_self_value_bias,
        self.encoder_layer_0_attention_output_dense_weight,
        self.encoder_layer_0_attention_output_dense_bias,
        self.encoder_layer_0_attention_output_LayerNorm_weight,
        self.encoder_layer_0_attention_output_LayerNorm_bias,
        self.encoder_layer_0_intermediate_dense_weight,
        self.encoder_layer_0_intermediate_dense_bias,
        self.encoder_layer_0_output_dense_weight,
        self.encoder_layer_0_output_dense_bias,
        self.encoder_layer_0_output_LayerNorm_weight,
        self.encoder_layer_0_output_LayerNorm_bias,
    )
    hidden = self.layer(
        hidden,
        seen,
        self.encoder_layer_1_attention_self_query_weight,
        self.encoder_layer_1_attention_self_query_bias,
        self.encoder_layer_1_attention_self_key_weight,
        self.encoder_layer_1_attention_self_key_bias,
        self.encoder_layer_1_attention_self_value_weight,
        self.encoder_layer_1_attention_self_value_bias,
        self.encoder_layer_1_attention_output_dense_weight,
        self.encoder_layer_1_attention_output_dense_bias,
        self.encoder_layer_1_attention_output_LayerNorm_weight,
        self.encoder_layer_1_attention_output_LayerNorm_bias,
        self.encoder_layer_1_intermediate_dense_weight,
        self.encoder_layer_1_intermediate_dense_bias,
        self.encoder_layer_1_output_dense_weight,
        self.encoder_layer_1_output_dense_bias,
        self.encoder_layer_1_output_LayerNorm_weight,
        self.encoder_layer_1_output_LayerNorm_bias,
    )
    hidden = self.layer(
        hidden,
        seen,
        self.encoder_layer_2_attention_self_query_weight,
        self.encoder_layer_2_attention_self_query_bias,
        self.encoder_layer_2_attention_self_key_weight,
        self.encoder_layer_2_attention_self_key_bias,
        self.encoder_layer_2_attention_self_value_weight,
        self.encoder_layer_2_attention_self_value_bias,
        self.encoder_layer_2_attention_output_dense_weight,
        self.encoder_layer_2_attention_output_dense_bias,
        self.encoder_layer_2_attention_output_LayerNorm_weight,
        self.encoder_layer_2_attention_output_LayerNorm_bias,
        self.encoder_layer_2_intermediate_dense_weight,
        self.encoder_layer_2_intermediate_dense_bias,
        self.encoder_layer_2_output_dense_weight,
        self.encoder_layer_2_output_dense_bias,
        self.encoder_layer_2_output_LayerNorm_weight,
        self.encoder_layer_2_output_LayerNorm_bias,
    )
    hidden = self.layer(
        hidden,
        seen,
        self.encoder_layer_3_attention_self_query_weight,
        self.encoder_layer_3_attention_self_query_bias,
        self.encoder_layer_3_attention_self_key_weight,
        self.encoder_layer_3_attention_self_key_bias,
        self.encoder_layer_3_attention_self_value_weight,
        self.encoder_layer_3_attention_self_value_bias,
        self.encoder_layer_3_attention_output_dense_weight,
        self.encoder_layer_3_attention_output_dense_bias,
        self.encoder_layer_3_attention_output_LayerNorm_weight,
        self.encoder_layer_3_attention_output_LayerNorm_bias,
        self.encoder_layer_3_intermediate_dense_weight,
        self.encoder_layer_3_intermediate_dense_bias,
        self.encoder_layer_3_output_dense_weight,
        self.encoder_layer_3_output_dense_bias,
        self.encoder_layer_3_output_LayerNorm_weight,
        self.encoder_layer_3_output_LayerNorm_bias,
    )
    hidden = self.layer(
        hidden,
        seen,
        self.encoder_layer_4_attention_self_query_weight,
        self.encoder_layer_4_attention_self_query_bias,
        self.encoder_layer_4_attention_self_key_weight,
        self.encoder_layer_4_attention_self_key_bias,
        self.encoder_layer_4_attention_self_value_weight,
        self.encoder_layer_4_attention_self_value_bias,
        self.encoder_layer_4_attention_output_dense_weight,
        self.encoder_layer_4_attention_output_dense_bias,
        self.encoder_layer_4_attention_output_LayerNorm_weight,
        self.encoder_layer_4_attention_output_LayerNorm_bias,
        self.encoder_layer_4_intermediate_dense_weight,
        self.encoder_layer_4_intermediate_dense_bias,
        self.encoder_layer_4_output_dense_weight,
        self.encoder_layer_4_output_dense_bias,
        self.encoder_layer_4_output_LayerNorm_weight,
        self.encoder_layer_4_output_LayerNorm_bias,
    )
    hidden = self.layer(
        hidden,
        seen,
        self.encoder_layer_5_attention_self_query_weight,
        self.encoder_layer_5_attention_self_query_bias,
        self.encoder_layer_5_attention_self_key_weight,
        self.encoder_layer_5_attention_self_key_bias,
        self.encoder_layer_5_attention_self_value_weight,
        self.encoder_layer_5_attention_self_value_bias,
        self.encoder_layer_5_attention_output_dense_weight,
        self.encoder_layer_5_attention_output_dense_bias,
        self.encoder_layer_5_attention_output_LayerNorm_weight,
        self.encoder_layer_5_attention_output_LayerNorm_bias,
        self.encoder_layer_5_intermediate_dense_weight,
        self.encoder_layer_5_intermediate_dense_bias,
        self.encoder_layer_5_output_dense_weight,
        self.encoder_layer_5_output_dense_bias,
        self.encoder_layer_5_output_LayerNorm_weight,
        self.encoder_layer_5_output_LayerNorm_bias,
    )
    weights = kept.unsqueeze(-1).to(hidden.dtype)
    mean = (hidden * weights).sum(1) / weights.sum(1).clamp(1e-9)
    return mean / mean.norm(2, [1], True).clamp(1e-12)


def layer(
    self,
    hidden: Tensor,
    seen: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    key_weight: Tensor,
    key_bias: Tensor,
    value_weight: Tensor,
    value_bias: Tensor,
    attended_weight: Tensor,
    attended_bias: Tensor,
    attended_norm_weight: Tensor,
    attended_norm_bias: Tensor,
    inner_weight: Tensor,
    inner_bias: Tensor,
    outer_weight: Tensor,
    outer_bias: Tensor,
    outer_norm_weight: Tensor,
    outer_norm_bias: Tensor,
) -> Tensor:
    query = self.heads(torch.linear(hidden, query_weight, query_bias))
    key = self.heads(torch.linear(hidden, key_weight, key_bias))
    value = self.heads(torch.linear(hidden, value_weight, value_bias))
    attended = torch.scaled_dot_product_attention(query, key, value, seen)
    attended = torch.linear(attended.transpose(1, 2).flatten(2), attended_weight, attended_bias)
    hidden = torch.layer_norm(hidden + attended, [384], attended_norm_weight, attended_norm_bias, 1e-12)
    inner = torch.gelu(torch.linear(hidden, inner_weight, inner_bias))
    outer = torch.linear(inner, outer_weight, outer_bias)
    return torch.layer_norm(hidden + outer, [384], outer_norm_weight, outer_norm_bias, 1e-12)


def heads(self, hidden: Tensor) -> Tensor:
    return hidden.view([hidden.size(0), hidden.size(1), 12, 32]).transpose(1, 2)
